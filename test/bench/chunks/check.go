package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/zeebo/blake3"
)

// check compares what collect read of a stopped program with the image that the engine made of
// the same one: how many chunks of the image are in ours too, and bytes of both.
func check(dir string, w io.Writer) error {
	paths, err := filepath.Glob(filepath.Join(dir, "check-*.ckpt"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		raw := path[:len(path)-len(".ckpt")] + ".raw"
		if err := checkOne(path, raw, w); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func checkOne(path, raw string, w io.Writer) (err error) {
	own, err := loadInput(raw)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.close()) }()
	have := map[hash]bool{}
	for _, c := range own.cut(image.ChunkSize) {
		have[blake3.Sum256(c)] = true
	}
	b, err := mapFile(path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := image.Open(f, int64(len(b)))
	if err != nil {
		return err
	}
	var found, missing, other int64
	for _, c := range r.Layout.Chunks {
		switch {
		case have[blake3.Sum256(b[c.Off:c.Off+int64(c.Len)])]:
			found += int64(c.Len)
		case c.Region.Kind == image.RegionVMA || c.Region.Kind == image.RegionSegment:
			missing += int64(c.Len)
		default:
			other += int64(c.Len)
		}
	}
	_, err = fmt.Fprintf(w, "%s: ours %.1f MiB; image %.1f MiB of memory in ours, %.1f MiB not, %.1f MiB head and blobs\n",
		filepath.Base(path), mib(int64(len(own.data))), mib(found), mib(missing), mib(other))
	return err
}
