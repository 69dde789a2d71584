package restore

import (
	"errors"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// Each trial is made for an image that needs it and for no other, and this kernel passes, though it may know no names.
func TestMemoryTrials(t *testing.T) {
	guards := []image.Extent{{Start: 0x1000, Len: 0x1000}}
	vmas := []image.VMA{
		{Start: 0x1000, End: 0x9000, Kind: image.VMAAnon, Flags: unix.MAP_PRIVATE, Guards: guards},
		{Start: 0x1000, End: 0x9000, Kind: image.VMAFilePrivate, Flags: unix.MAP_PRIVATE, Guards: guards},
		{Start: 0x1000, End: 0x9000, Kind: image.VMAAnon, Flags: unix.MAP_DROPPABLE | unix.MAP_NORESERVE},
		{Start: 0x1000, End: 0x9000, Kind: image.VMAAnon, Flags: unix.MAP_PRIVATE, Name: "[anon:a name]"},
		{Start: 0x1000, End: 0x9000, Kind: image.VMAAnon, Flags: unix.MAP_PRIVATE, Name: "[heap]"},
	}
	for i, v := range vmas {
		m := &image.Manifest{Tasks: []image.Task{{PID: 7, State: image.TaskZombie}, {PID: 8, MM: 1}}, MMs: []image.MM{{VMAs: []image.VMA{v}}}}
		for k, c := range memoryTrials {
			if pid, v := needs(m, c.needs); (v != nil) != (i == k) || v != nil && pid != 8 {
				t.Errorf("VMA %d, trial %d (%s): pid %d, %v", i, k, c.what, pid, v)
			}
		}
		err := checkMemory(m)
		if i == 3 && tryName() != nil {
			if err == nil || !strings.Contains(err.Error(), "CONFIG_ANON_VMA_NAME") {
				t.Errorf("without names: %v", err)
			}
		} else if err != nil {
			t.Error(err)
		}
	}
}

// A kernel that lacks something is told by name, with the process and what to do.
func TestMemoryRefused(t *testing.T) {
	m := &image.Manifest{Tasks: []image.Task{{PID: 8, MM: 1}},
		MMs: []image.MM{{VMAs: []image.VMA{{Start: 0x5000, End: 0x9000, Kind: image.VMAAnon, Flags: unix.MAP_DROPPABLE}}}}}
	c := memoryTrials[2]
	c.try = func() error { return unix.EINVAL }
	err := c.check(m)
	var host *HostError
	if !errors.As(err, &host) || !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	for _, word := range []string{"pid 8", "MAP_DROPPABLE", "0x5000", "6.11"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in %q", word, err)
		}
	}
}
