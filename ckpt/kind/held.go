package kind

import (
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// held refuses what processes hold on an open file beside its own state: locks and leases.
// Every kind's Check begins with it.
func held(f *Found) []image.Finding {
	var all []image.Finding
	leased := false
	for _, line := range f.Info.Locks {
		name := lockName(line)
		leased = leased || strings.HasPrefix(name, "lease")
		all = append(all, f.refuse("it holds a "+name+" ("+lockLine(line)+"), which a restore cannot take again safely",
			"release the lock, or checkpoint when it is not held"))
	}
	if f.Flags&unix.O_PATH != 0 || leased {
		return all
	}
	// F_GETLEASE tells of this open file description alone; kinds that know no leases say EINVAL.
	if l, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETLEASE, 0); err == nil && l != unix.F_UNLCK {
		all = append(all, f.refuse(fmt.Sprintf("it holds a lease (F_SETLEASE type %d), which a restore cannot take again safely", l),
			"give the lease back with F_UNLCK first"))
	}
	return all
}

// lockLine cuts the label off a lock line of an fdinfo.
func lockLine(line string) string {
	return strings.Join(strings.Fields(strings.TrimPrefix(line, "lock:")), " ")
}

// lockName names the lock of a line such as "lock:\t1: FLOCK  ADVISORY  WRITE 77 00:19:5 0 EOF".
func lockName(line string) string {
	for _, w := range strings.Fields(line) {
		switch w {
		case "POSIX":
			return "POSIX lock (F_SETLK)"
		case "FLOCK":
			return "flock(2) lock"
		case "OFDLCK":
			return "open file description lock (F_OFD_SETLK)"
		case "LEASE", "DELEG":
			return "lease (F_SETLEASE)"
		}
	}
	return "lock"
}
