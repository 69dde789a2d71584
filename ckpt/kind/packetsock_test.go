package kind

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func FuzzParsePacketDiag(f *testing.F) {
	f.Add([]byte("\x10\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x3c\x00\x00\x00\x14\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x11\x03\x00\x03\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x1c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all := map[uint32]*packetInfo{}
		done, err := parsePacketDiag(b, all)
		if done && err != nil || len(all) > len(b)/32 {
			t.Errorf("%d sockets of %d bytes, %v %v", len(all), len(b), done, err)
		}
	})
}

func TestPacketRefusals(t *testing.T) {
	check := func(fd int) string {
		s := newStage(t)
		s.add(fd)
		var all []string
		for _, f := range s.check() {
			all = append(all, f.String())
		}
		return strings.Join(all, "\n")
	}
	ring := newSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0)
	req := unix.TpacketReq{Block_size: 4096, Block_nr: 2, Frame_size: 2048, Frame_nr: 4}
	if _, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(ring), unix.SOL_PACKET, unix.PACKET_RX_RING, uintptr(unsafe.Pointer(&req)), unsafe.Sizeof(req), 0); errno != 0 {
		t.Fatal(errno)
	}
	wantWords(t, check(ring), "it has a ring (PACKET_RX_RING or PACKET_TX_RING)", "recv(2)")

	lo, err := interfaceIndex("lo")
	must(t, err)
	bind := func(fd int) int {
		must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0608, Ifindex: lo})) // ETH_P_ARP
		return fd
	}
	ours, theirs := bind(newSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, 0)), bind(newSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, 0))
	must(t, unix.SetsockoptInt(ours, unix.SOL_PACKET, unix.PACKET_FANOUT, 0x1234))
	if got := check(ours); got != "" {
		t.Errorf("refused: %s", got)
	}
	must(t, unix.SetsockoptInt(theirs, unix.SOL_PACKET, unix.PACKET_FANOUT, 0x1234))
	wantWords(t, check(ours), "its fanout group 4660 has a socket outside the tree, too", "ss -0e")
	program := bind(newSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, 0))
	must(t, unix.SetsockoptInt(program, unix.SOL_PACKET, unix.PACKET_FANOUT, 0x1235|fanoutCBPF<<16))
	wantWords(t, check(program), "a program chooses the socket of its fanout group (PACKET_FANOUT_DATA)")
}

// TestPacketFanout: the group of number 0 and type 0 is one, too, and how many sockets it may have is kept.
func TestPacketFanout(t *testing.T) {
	lo, err := interfaceIndex("lo")
	must(t, err)
	fd := newSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0608, Ifindex: lo}))
	must(t, rawSetOpt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, []byte{0, 0, 0, 0, 17, 0, 0, 0}))
	got := goneThenOpen(t, newStage(t), fd)
	if most, err := fanoutMost(got[0]); err != nil || most != 17 {
		t.Errorf("its group may have %d sockets (%v), not 17", most, err)
	}
	if b, err := socketFilter(got[0]); err != nil || len(b) != 0 {
		t.Errorf("it has the filter %x, %v", b, err)
	}
}

// TestPacketInterface: the interface is found by its name, or the restore refused before it begins.
func TestPacketInterface(t *testing.T) {
	const name = "ckptfstest0"
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("link", "add", name, "type", "veth", "peer", "name", name+"p")
	there := true
	remove := func() {
		if there {
			ip("link", "del", name)
		}
		there = false
	}
	t.Cleanup(remove)
	index, err := interfaceIndex(name)
	must(t, err)
	fd := newSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0)
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0608, Ifindex: index}))
	_, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // it is down
	must(t, err)
	s := newStage(t)
	s.add(fd)
	if all := s.check(); len(all) != 0 {
		t.Fatal(all)
	}
	recs := s.dump()
	remove()
	_, err = (packetSock{}).CheckOpen(&recs[0], s.env)
	wantWords(t, fmt.Sprint(err), `there is no network interface "ckptfstest0" here`, "ip link")
	again := newStage(t)
	again.add(fd)
	wantWords(t, fmt.Sprint(again.check()), "its network interface", "is gone")

	ip("link", "add", name, "type", "veth", "peer", "name", name+"p") // with another number
	there = true
	if _, err := (packetSock{}).CheckOpen(&recs[0], s.env); err != nil {
		t.Fatal(err)
	}
	got, err := (packetSock{}).Open(&recs[0], s.env)
	must(t, err)
	defer unix.Close(got)
	now, err := interfaceIndex(name)
	must(t, err)
	sa, err := unix.Getsockname(got)
	must(t, err)
	if ll := sa.(*unix.SockaddrLinklayer); ll.Ifindex != now || ll.Protocol != 0x0608 || now == index {
		t.Errorf("bound to %+v, the interface was %d and is %d", ll, index, now)
	}
	if e, err := unix.GetsockoptInt(got, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || e != 0 {
		t.Errorf("an error waits in it: %d, %v", e, err)
	}
}

func TestPacketHostile(t *testing.T) {
	for name, r := range map[string]packetRec{
		"type":       {Type: 7},
		"filter":     {Type: unix.SOCK_RAW, Filter: make([]byte, 7)},
		"joined":     {Type: unix.SOCK_RAW, Joined: make([]joined, mostJoined+1)},
		"times":      {Type: unix.SOCK_RAW, Joined: []joined{{"lo", unix.PACKET_MR_PROMISC, nil, 1 << 30}}},
		"never":      {Type: unix.SOCK_RAW, Joined: []joined{{"lo", unix.PACKET_MR_PROMISC, nil, 0}}},
		"address":    {Type: unix.SOCK_RAW, Joined: []joined{{"lo", unix.PACKET_MR_MULTICAST, make([]byte, 9), 1}}},
		"membership": {Type: unix.SOCK_RAW, Joined: []joined{{"lo", 77, nil, 1}}},
		"interface":  {Type: unix.SOCK_RAW, Interface: strings.Repeat("x", 16)},
		"fanout":     {Type: unix.SOCK_RAW, Fanout: new(uint32)},
		"option":     {Type: unix.SOCK_RAW, Opts: []sockOpt{{unix.SOL_PACKET, unix.PACKET_VERSION, make([]byte, 40)}}},
	} {
		rec := image.File{Kind: "packet"}
		must(t, encodeRec(&rec, &r))
		if fd, err := (packetSock{}).Open(&rec, newStage(t).env); err == nil {
			unix.Close(fd)
			t.Errorf("%s: opened", name)
		}
		if _, err := (packetSock{}).CheckOpen(&rec, newStage(t).env); err == nil {
			t.Errorf("%s: nothing is wrong with it", name)
		}
	}
}
