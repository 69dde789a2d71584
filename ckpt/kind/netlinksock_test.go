package kind

import (
	"bytes"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func TestNetlink(t *testing.T) {
	route := newSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	must(t, unix.Bind(route, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})) // RTMGRP_LINK
	must(t, unix.SetsockoptInt(route, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_IPV6_IFADDR))
	must(t, unix.SetsockoptInt(route, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1))
	must(t, unix.SetsockoptInt(route, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1))
	must(t, unix.SetsockoptInt(route, unix.SOL_SOCKET, unix.SO_RCVBUF, 70000))
	fresh := newSocket(t, unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_KOBJECT_UEVENT)
	name, err := sockName(route, unix.SYS_GETSOCKNAME)
	must(t, err)
	members, _ := rawGetOpt(route, unix.SOL_NETLINK, netlinkListMemberships, 128)
	got := goneThenOpen(t, newStage(t), route, fresh)
	now, err := sockName(got[0], unix.SYS_GETSOCKNAME)
	must(t, err)
	is, _ := rawGetOpt(got[0], unix.SOL_NETLINK, netlinkListMemberships, 128)
	if !bytes.Equal(now, name) || !bytes.Equal(is, members) {
		t.Errorf("it has the address %x and groups %x, had %x and %x", now, is, name, members)
	}
	for _, o := range []struct{ level, name, want int }{{unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1}, {unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1}, {unix.SOL_SOCKET, unix.SO_RCVBUF, 140000}} {
		if v, err := unix.GetsockoptInt(got[0], o.level, o.name); err != nil || v != o.want {
			t.Errorf("option %d of level %d: %d %v", o.name, o.level, v, err)
		}
	}
}

func TestNetlinkRefusals(t *testing.T) {
	fd := newSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	req := make([]byte, 17) // struct nlmsghdr and struct rtgenmsg: a dump of all interfaces
	req[0], req[4], req[6], req[7] = 17, unix.RTM_GETLINK, unix.NLM_F_REQUEST, unix.NLM_F_DUMP>>8
	must(t, unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	s := newStage(t)
	s.add(fd)
	all := s.check()
	wantWords(t, all[0].String(), "messages of the kernel wait in it", "let the program read it")
	const text = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n000 0   4711 00000000 0 0 1 2 0 99\n000 0   4711 00000000 0 0 0 2 0 98\n"
	if !netlinkBusy(text, 99) || netlinkBusy(text, 98) || netlinkBusy(text, 97) {
		t.Error("/proc/net/netlink is misread")
	}
}

func TestNetlinkHostile(t *testing.T) {
	for name, r := range map[string]netlinkRec{
		"type":     {Type: 7},
		"protocol": {Type: unix.SOCK_RAW, Protocol: unix.NETLINK_AUDIT},
		"groups":   {Type: unix.SOCK_RAW, Groups: make([]uint32, 5000)},
		"filter":   {Type: unix.SOCK_RAW, Filter: make([]byte, 7)},
		"option":   {Type: unix.SOCK_RAW, Opts: []sockOpt{{1, 4, make([]byte, 4)}}},
	} {
		rec := image.File{Kind: "netlink"}
		must(t, encodeRec(&rec, &r))
		if fd, err := (netlinkSock{}).Open(&rec, newStage(t).env); err == nil {
			unix.Close(fd)
			t.Errorf("%s: opened", name)
		}
	}
}
