package restore

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"golang.org/x/sys/unix"
)

// What keeps an object of System V from being made is told with what to do.
func TestMakeError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{unix.EINVAL, "raise kernel.shmmax"}, {fmt.Errorf("x: %w", unix.ENOSPC), "raise kernel.shmmax"}, {unix.EACCES, "run it as root"},
		{&sysv.TakenError{What: "segment", ID: 5, Got: 6}, "the id 5 of a segment is taken"},
	} {
		err := makeError(c.err, "kernel.shmmax")
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.err, err)
		}
	}
	if err := makeError(nil, "x"); err != nil {
		t.Error(err)
	}
}

// A user gets back only what he could have made himself.
func TestExceedsSysV(t *testing.T) {
	groups := []uint32{5, 6}
	own := image.SysVShm{ID: 1, UID: 1000, CUID: 1000, GID: 5, CGID: 6}
	m := &image.Manifest{Segments: []image.Segment{{}, {SysV: &own}}, SemSets: []image.SemSet{{Perm: image.IPCPerm{UID: 1000, CUID: 1000, GID: 5, CGID: 5}}}}
	if what := exceedsSysV(m, 1000, groups) + exceedsIPC(m, 1000, groups); what != "" {
		t.Error(what)
	}
	for _, spoil := range []func(v *image.SysVShm){func(v *image.SysVShm) { v.UID = 0 }, func(v *image.SysVShm) { v.CUID = 0 },
		func(v *image.SysVShm) { v.GID = 0 }, func(v *image.SysVShm) { v.CGID = 0 }, func(v *image.SysVShm) { v.Locked = true }} {
		v := own
		spoil(&v)
		m.Segments[1].SysV = &v
		if exceedsSysV(m, 1000, groups) == "" {
			t.Errorf("%+v is allowed", v)
		}
	}
	m.MsgQueues = []image.MsgQueue{{Perm: image.IPCPerm{UID: 1000, CUID: 1001, GID: 5, CGID: 5}}}
	if exceedsIPC(m, 1000, groups) == "" {
		t.Error("another's queue is allowed")
	}
}
