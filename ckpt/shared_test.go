package ckpt

import (
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
)

// TestAdopted tells processes that their parents can have forked from those that came to them later.
func TestAdopted(t *testing.T) {
	stat := func(pid, ppid, sid int) *procfs.Stat { return &procfs.Stat{PID: pid, PPID: ppid, SID: sid} }
	for _, c := range []struct {
		what string
		tree []*procfs.Stat // the last one is asked about
		want bool
	}{
		{"the session of its parent", []*procfs.Stat{stat(1, 9, 1), stat(2, 1, 1)}, false},
		{"a session of its own", []*procfs.Stat{stat(1, 9, 1), stat(2, 1, 2)}, false},
		{"an older session, of its parent's parent", []*procfs.Stat{stat(1, 9, 1), stat(2, 1, 2), stat(3, 2, 1)}, false},
		{"an older session, whose leader has ended", []*procfs.Stat{stat(1, 9, 7), stat(2, 1, 2), stat(3, 2, 7)}, false},
		{"a session whose leader was the parent's child", []*procfs.Stat{stat(1, 9, 1), stat(3, 1, 2)}, true},
		{"a session whose leader is the parent's child", []*procfs.Stat{stat(1, 9, 1), stat(2, 1, 2), stat(3, 1, 2)}, true},
		{"the same, and the parent leads nothing", []*procfs.Stat{stat(1, 9, 9), stat(2, 1, 2), stat(3, 1, 2)}, true},
	} {
		f := family{}
		for _, st := range c.tree {
			f[st.PID] = st
		}
		if last := c.tree[len(c.tree)-1]; f.adopted(last.PID) != c.want {
			t.Errorf("%s: not %v", c.what, c.want)
		}
	}
}
