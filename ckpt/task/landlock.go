package task

import (
	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// landlock reports that a thread may be in a Landlock domain. No file of /proc tells, nor does any
// call that the thread itself could make. To enter one it needs no_new_privs, so a thread without
// is taken as free; the few that had CAP_SYS_ADMIN instead are missed. A sandbox that does not come
// back must not be lost in silence.
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
