package kind

import (
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// Unsupported is the refusal of a file that no kind of All matches. It names what the file
// is, as exactly as it can be found out, and what to do.
func Unsupported(f *Found) image.Finding {
	kind, what, remedy := f.Link, "open files of this kind are not kept", "close it before the checkpoint"
	switch f.Stat.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		kind, remedy = socketName(f), "close the connection before the checkpoint and open it again afterwards, or use a pipe or fifo between processes of the tree"
		what = "sockets are not kept"
	case unix.S_IFCHR:
		kind = fmt.Sprintf("character device %d:%d %s", unix.Major(f.Stat.Rdev), unix.Minor(f.Stat.Rdev), f.Link)
		what, remedy = "the device has state that only its driver knows", "close the device before the checkpoint and open it again afterwards"
	case unix.S_IFBLK:
		kind = fmt.Sprintf("block device %d:%d %s", unix.Major(f.Stat.Rdev), unix.Minor(f.Stat.Rdev), f.Link)
		what, remedy = "block devices are not kept, as nobody could tell whether the disk has changed", "close the device before the checkpoint"
	default:
		if name, ok := strings.CutPrefix(f.Link, "anon_inode:"); ok {
			what, remedy = anonymous(strings.Trim(name, "[]"))
		} else if w, r := specialRefusal(f); w != "" {
			what, remedy = w, r
		} else if f.Flags&unix.O_PATH != 0 {
			what, remedy = "it was opened with O_PATH and has no path", "close it before the checkpoint"
		} else if !strings.HasPrefix(f.Link, "/") {
			what = "it has no path under the root directory from which it could be opened again"
		}
	}
	return f.Finding(image.Refuse, kind, what, remedy)
}

// anonymous explains the files that have no name anywhere, by what the kernel calls them.
func anonymous(name string) (what, remedy string) {
	const after = "close it before the checkpoint and make it again afterwards"
	switch name {
	case "userfaultfd":
		return "a userfaultfd has memory registered with it, and may have page faults that wait for it in the kernel", "run the program without userfaultfd, or " + after
	case "perf_event":
		return "performance counters are not kept: nobody can set what they have counted", "end perf or the profiler before the checkpoint"
	case "seccomp notify":
		return "a seccomp listener has requests in the kernel that cannot be read", "checkpoint the processes without their supervisor"
	case "landlock-ruleset":
		return "a landlock ruleset that is still being written cannot be read", "call landlock_restrict_self and close it before the checkpoint"
	}
	if strings.HasPrefix(name, "kvm") {
		return "virtual machines are not kept", "use the snapshot command of the hypervisor"
	}
	if strings.HasPrefix(name, "bpf") || name == "btf" {
		return "BPF programs, maps and links are not kept: what they are attached to and who shares them lies outside the tree", after
	}
	return "open files of this kind are not kept", "close it before the checkpoint"
}

// socketName names a socket by family, type and protocol.
func socketName(f *Found) string {
	var v [3]int
	for i, opt := range [...]int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		n, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, opt)
		if err != nil {
			return "socket " + f.Link // opened with O_PATH
		}
		v[i] = n
	}
	return fmt.Sprintf("%s %s socket, protocol %s, %s", familyName(v[0]), sockTypeName(v[1]), protocolName(v[0], v[2]), f.Link)
}

func familyName(n int) string {
	switch n {
	case unix.AF_UNIX:
		return "unix"
	case unix.AF_INET:
		return "IPv4"
	case unix.AF_INET6:
		return "IPv6"
	case unix.AF_NETLINK:
		return "netlink"
	case unix.AF_PACKET:
		return "packet"
	case unix.AF_VSOCK:
		return "vsock"
	case unix.AF_ALG:
		return "crypto (AF_ALG)"
	}
	return fmt.Sprintf("family-%d", n)
}

func sockTypeName(n int) string {
	switch n {
	case unix.SOCK_STREAM:
		return "stream"
	case unix.SOCK_DGRAM:
		return "datagram"
	case unix.SOCK_SEQPACKET:
		return "seqpacket"
	case unix.SOCK_RAW:
		return "raw"
	}
	return fmt.Sprintf("type-%d", n)
}

func protocolName(family, n int) string {
	if family == unix.AF_INET || family == unix.AF_INET6 {
		switch n {
		case unix.IPPROTO_TCP:
			return "TCP"
		case unix.IPPROTO_UDP:
			return "UDP"
		case unix.IPPROTO_ICMP:
			return "ICMP"
		}
	}
	return fmt.Sprint(n)
}
