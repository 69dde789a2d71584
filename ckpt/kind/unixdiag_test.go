package kind

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestUnixSockets(t *testing.T) {
	a, b := unixPair(t, unix.SOCK_SEQPACKET)
	all, err := unixSockets()
	must(t, err)
	var sa, sb unix.Stat_t
	must(t, unix.Fstat(a, &sa))
	must(t, unix.Fstat(b, &sb))
	u := all[uint32(sa.Ino)]
	if u == nil || u.Type != unix.SOCK_SEQPACKET || !u.HasPeer || uint64(u.Peer) != sb.Ino || u.Shutdown != 0 {
		t.Errorf("%+v", u)
	}
}

func FuzzParseUnixDiag(f *testing.F) {
	f.Add([]byte("\x10\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x28\x00\x00\x00\x14\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08\x00\x02\x00\x05\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all := map[uint32]*unixInfo{}
		done, err := parseUnixDiag(b, all)
		if done && err != nil || len(all) > len(b)/32 {
			t.Errorf("%d sockets of %d bytes, %v %v", len(all), len(b), done, err)
		}
	})
}
