package kind

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLiveTCP compares what sock_diag tells with /proc/net.
func TestLiveTCP(t *testing.T) {
	mine := map[uint64]bool{}
	note := func(fd int) {
		var st unix.Stat_t
		must(t, unix.Fstat(fd, &st))
		mine[st.Ino] = true
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		l := newSocket(t, family, unix.SOCK_STREAM, 0)
		if family == unix.AF_INET {
			must(t, unix.Bind(l, localhost))
		}
		must(t, unix.Listen(l, 5))
		at, err := unix.Getsockname(l)
		must(t, err)
		c := newSocket(t, family, unix.SOCK_STREAM, 0)
		must(t, unix.Connect(c, at))
		note(l)
		note(c)
	}
	only := func(all []inetLine) (out []inetLine) {
		for _, l := range all {
			if mine[l.inode] {
				out = append(out, l)
			}
		}
		slices.SortFunc(out, func(a, b inetLine) int { return int(a.inode) - int(b.inode) })
		return out
	}
	got, err := liveTCP()
	must(t, err)
	want, err := inetLines("tcp", "tcp6")
	must(t, err)
	if a, b := only(got), only(want); len(a) != 4 || !slices.Equal(a, b) {
		t.Errorf("sock_diag has %+v\n/proc/net has %+v", a, b)
	}
	short := make([]byte, 71)
	if _, ok := parseInetDiag(short); ok {
		t.Error("a message that is cut off is read")
	}
}
