package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// BenchmarkLazy measures how long a lazy restore takes until the command is through, and until the program has done
// something by itself, for processes of several sizes, in the same rounds; and how long until all memory is there, if
// the program leaves it alone. Beside it stands a restore that is not lazy.
func BenchmarkLazy(b *testing.B) {
	sizes := []int{1, 256, 1024, 2048}
	type times struct{ command, instruction, all, eager []float64 }
	by := map[int]*times{}
	for b.Loop() {
		for _, mib := range sizes {
			if by[mib] == nil {
				by[mib] = &times{}
			}
			m := by[mib]
			p := harness.Start(b, "shape", fmt.Sprintf("mib=%d", mib), "random=1")
			dir := scratch(b)
			image := filepath.Join(dir, "image")
			p.DumpTo(image)
			p.Kill()
			m.eager = append(m.eager, 1000*seconds(func() { p.Restore(image) }))
			p.Kill()

			begun := time.Now()
			p.Restore(image, "--lazy")
			m.command = append(m.command, 1000*time.Since(begun).Seconds())
			for lazy(b, p.PID) { // which holds the stream up
				time.Sleep(50 * time.Millisecond)
			}
			m.all = append(m.all, 1000*time.Since(begun).Seconds())
			p.Kill()

			p.Again()
			if err := os.WriteFile(filepath.Join(p.Dir, "go"), []byte("restored\n"), 0o644); err != nil {
				b.Fatal(err)
			}
			result := filepath.Join(p.Dir, "result")
			m.instruction = append(m.instruction, 1000*seconds(func() {
				go harness.Run(b, harness.Binary(), "restore", "--lazy", image)
				for {
					if _, err := os.Stat(result); err == nil {
						return
					}
					time.Sleep(200 * time.Microsecond)
				}
			}))
			p.Finish()
			p.Kill()
			os.RemoveAll(dir)
		}
	}
	var t strings.Builder
	t.WriteString("\n| process | restore ms | restore --lazy ms | first instruction ms | all memory ms | first instruction / 1 MiB |\n|---|---|---|---|---|---|\n")
	for _, mib := range sizes {
		m := by[mib]
		fmt.Fprintf(&t, "| %d MiB | %v | %v | %v | %v | %.2f |\n", mib, spreadOf(m.eager), spreadOf(m.command), spreadOf(m.instruction), spreadOf(m.all),
			middle(m.instruction)/middle(by[sizes[0]].instruction))
	}
	fmt.Println(t.String())
}

// lazy reports whether memory of a process is still to come.
func lazy(b *testing.B, pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		b.Fatal(err)
	}
	return strings.Contains(string(text), " um ")
}
