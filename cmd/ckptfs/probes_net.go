package main

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/netlock"
	"golang.org/x/sys/unix"
)

// probeRepair takes a new TCP socket into repair mode and out of it.
func probeRepair(int) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 1); err != nil {
		return "", fmt.Errorf("TCP_REPAIR: %w", err)
	}
	return "works", unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, -1) // TCP_REPAIR_OFF_NO_WP
}

// probeNetfilter keeps away the packets of a connection that does not exist.
func probeNetfilter(int) (string, error) {
	if err := netlock.Probe(); err != nil {
		return "", err
	}
	return "works", nil
}

// sweepLocks lets the packets of connections through that a ckptfs kept away which was killed. Who
// may not look, or has no netfilter, has left none.
func sweepLocks(say func(format string, args ...any)) {
	if n, err := netlock.Sweep(); err == nil && n > 0 {
		say("removed what a ckptfs that was killed had left in netfilter: %d TCP connections go on", n)
	}
}

// probeDiag asks the kernel for the unix sockets, as a checkpoint does.
func probeDiag(int) (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return "", fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	req := make([]byte, 40) // struct nlmsghdr and struct unix_diag_req
	req[0], req[4], req[6], req[7] = 40, unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_REQUEST, unix.NLM_F_DUMP>>8
	req[16] = unix.AF_UNIX
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return "", fmt.Errorf("ask: %w", err)
	}
	patience := unix.NsecToTimeval(5e9)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return "", err
	}
	b := make([]byte, 64<<10)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return "", fmt.Errorf("answer: %w", err)
	}
	if n < 16 || b[4] == unix.NLMSG_ERROR && b[5] == 0 {
		return "", fmt.Errorf("the kernel cannot list unix sockets (CONFIG_UNIX_DIAG)")
	}
	return "works", nil
}
