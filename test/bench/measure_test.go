package bench

import (
	"io/fs"
	"os"
	"slices"
	"syscall"
	"testing"
)

// middle returns the median.
func middle(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// diskUsage sums the blocks of the files below dir, in bytes.
func diskUsage(b *testing.B, dir string) int64 {
	b.Helper()
	var n int64
	err := fs.WalkDir(os.DirFS(dir), ".", func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		n += fi.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
