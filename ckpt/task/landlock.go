package task

import (
	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// landlock reports that a thread may be in a Landlock domain. Nothing tells: no file of /proc, and no
// call of the thread itself. What it needs first is no_new_privs (or CAP_SYS_ADMIN, which
// hides the few that had it then), so a thread without that is taken as free. A sandbox that does
// not come back must not be lost in silence.
func (c *checker) landlock(tid int, nnp bool) {
	if nnp && hasLandlock() {
		c.add(image.Lose, tid, "Landlock", "it has no_new_privs and so may have restricted itself with Landlock, which cannot be seen from outside and would not come back",
			"if the program uses Landlock, start it anew instead of restoring it")
	}
}

// hasLandlock says whether this kernel offers Landlock, by asking for the version of its ABI.
func hasLandlock() bool {
	_, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return e == 0
}
