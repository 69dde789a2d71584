package kind

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

func optState(t *testing.T, fd int) map[int32][]byte {
	t.Helper()
	all := map[int32][]byte{}
	for opt, size := range unixOpts {
		v, err := getUnixOpt(fd, opt, size)
		must(t, err)
		all[opt] = v
	}
	return all
}

// TestUnixOptions sets every option there is, one by one and then together.
func TestUnixOptions(t *testing.T) {
	values := map[int32][]byte{}
	for opt, size := range unixOpts {
		values[opt] = append([]byte{1}, make([]byte, size-1)...)
	}
	values[unix.SO_LINGER] = []byte{1, 0, 0, 0, 7, 0, 0, 0}
	values[unix.SO_RCVTIMEO][0], values[unix.SO_SNDTIMEO][8] = 9, 100
	values[unix.SO_RCVLOWAT][0], values[unix.SO_PEEK_OFF][0], values[unix.SO_PRIORITY][0] = 5, 2, 6
	values[unix.SO_PASSRIGHTS][0] = 0
	values[unix.SO_SNDBUF], values[unix.SO_RCVBUF] = []byte{0, 0, 1, 0}, []byte{0, 0, 2, 0}
	delete(values, unix.SO_DEBUG) // needs a privilege, and so does SO_MARK
	for _, typ := range unixTypes {
		a, b := unixPair(t, typ)
		for opt, v := range values {
			c, d := unixPair(t, typ)
			if err := setUnixOpt(c, opt, v); err != nil {
				t.Logf("option %d: %v", opt, err)
				delete(values, opt)
				continue
			}
			sendAll(t, c, []byte("12345"))
			sameAfterTrip(t, c, d)
			must(t, setUnixOpt(a, opt, v))
		}
		sameAfterTrip(t, a, b)
	}
}

// sameAfterTrip closes the old ones: with SO_PASSCRED a socket gets a name when it sends.
func sameAfterTrip(t *testing.T, a, b int) {
	t.Helper()
	was := []map[int32][]byte{optState(t, a), optState(t, b)}
	_, got := closedTrip(t, a, b)
	for i := range was {
		sameOptions(t, was[i], got[i])
	}
}

func sameOptions(t *testing.T, was map[int32][]byte, fd int) {
	t.Helper()
	is := optState(t, fd)
	for opt, v := range was {
		if !bytes.Equal(v, is[opt]) {
			t.Errorf("option %d is %x, was %x", opt, is[opt], v)
		}
	}
}

// TestUnixFilter has a filter that lets the first four bytes pass, and is locked.
func TestUnixFilter(t *testing.T) {
	a, b := unixPair(t, unix.SOCK_DGRAM)
	sendAll(t, a, []byte("before the filter"))
	ins := []unix.SockFilter{{Code: 0x06, K: 4}} // BPF_RET
	must(t, unix.SetsockoptSockFprog(b, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &ins[0]}))
	must(t, unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1))
	_, got := roundTrip(t, a, b)
	sameOptions(t, optState(t, b), got[1])
	for _, fds := range [][2]int{{a, b}, {got[0], got[1]}} {
		sendAll(t, fds[0], []byte("behind the filter"))
		if all := recvAll(t, fds[1]); len(all) != 2 || all[0] != "before the filter" || all[1] != "behi" {
			t.Errorf("got %q", all)
		}
		if err := unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != unix.EPERM {
			t.Errorf("detaching a locked filter: %v", err)
		}
	}
}
