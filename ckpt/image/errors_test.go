package image_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// What a user reads, and what code decides on.
func TestSentences(t *testing.T) {
	for _, c := range []struct {
		err  error
		is   error
		want string
	}{
		{&image.CutError{Have: 5, Want: 9}, image.ErrCut, "the image is cut: it has 5 of 9 bytes; copy it again"},
		{&image.CorruptError{Chunk: 3, Off: 4096, What: "chunk 3 does not have its hash"}, image.ErrCorrupt, "the image is damaged at offset 4096: chunk 3 does not have its hash; use another copy of it"},
		{&image.FieldError{Path: "tasks[0].mm", What: "is missing"}, image.ErrHostile, "the manifest of the image is inconsistent: tasks[0].mm: is missing"},
		{&image.FeatureError{Path: "features", Name: "vfork"}, image.ErrFeature, "the image needs a feature that this version does not have: vfork in features; use the version of ckptfs that wrote it, or a newer one"},
	} {
		wrapped := fmt.Errorf("f: %w", c.err)
		if c.err.Error() != c.want || !errors.Is(wrapped, c.is) || errors.Is(wrapped, image.ErrNotImage) || errors.Is(wrapped, io.EOF) {
			t.Errorf("%v\nwant %s", c.err, c.want)
		}
	}
}

func TestFinding(t *testing.T) {
	for _, c := range []struct {
		f    image.Finding
		want string
	}{
		{image.Finding{Severity: image.Refuse, PID: 12, FD: 5, Kind: "socket:[77]", What: "sockets are not kept", Remedy: "close it"},
			"refused: pid 12 fd 5 (socket:[77]): sockets are not kept; close it"},
		{image.Finding{Severity: image.Lose, PID: 12, TID: 13, FD: image.NoFD, Addr: 0x1000, Kind: "lock", What: "it goes"},
			"lost: pid 12 thread 13 at 0x1000 (lock): it goes"},
		{image.Finding{Severity: image.Lose, PID: 12, TID: 12, FD: 0, Kind: "terminal", What: "it is gone"}, "lost: pid 12 fd 0 (terminal): it is gone"},
	} {
		if got := c.f.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	lose, refuse := image.Finding{Severity: image.Lose}, image.Finding{Severity: image.Refuse, PID: 1}
	if err := image.Refusals([]image.Finding{lose, lose}); err != nil {
		t.Errorf("losses refuse: %v", err)
	}
	var refused *image.RefusedError
	if err := image.Refusals([]image.Finding{refuse, lose, refuse}); !errors.As(err, &refused) || len(refused.Findings) != 2 || err.Error() != refuse.String()+"\n"+refuse.String() {
		t.Errorf("refusals: %v", err)
	}
}
