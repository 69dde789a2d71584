package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// diagPatience is how long sock_diag(7) may take for an answer.
const diagPatience = 5 * time.Second

// diagSocket is a socket for questions to sock_diag(7).
func diagSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return -1, fmt.Errorf("socket for sock_diag: %w", err)
	}
	patience := unix.NsecToTimeval(int64(diagPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("sock_diag: SO_RCVTIMEO: %w", err)
	}
	return fd, nil
}

// listSockets asks sock_diag(7) for all sockets of a family in our network namespace. body is the request that follows
// the struct nlmsghdr. parse gets each datagram of the answer and says whether it is the last.
func listSockets(body []byte, parse func(b []byte) (done bool, err error)) error {
	fd, err := diagSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ne := binary.NativeEndian
	req := make([]byte, 16, 16+len(body))
	ne.PutUint32(req, uint32(16+len(body)))
	ne.PutUint16(req[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, append(req, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask sock_diag: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		if done, err := parse(buf[:n]); done || err != nil {
			return err
		}
	}
}

// eachAttribute calls f for the attributes of netlink(7) that follow a message.
func eachAttribute(b []byte, f func(typ uint16, v []byte)) {
	const typeMask = 0x3fff // NLA_TYPE_MASK of linux/netlink.h
	ne := binary.NativeEndian
	for len(b) >= 4 {
		n := int(ne.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(ne.Uint16(b[2:])&typeMask, b[4:n])
		b = b[min(len(b), (n+3)&^3):]
	}
}

// parseDiag reads one datagram of an answer and calls each for every socket in it, with 16 bytes (as struct unix_diag_msg has
// them) and its attributes; done: it was the last. what is for the error of a kernel that cannot list them.
func parseDiag(b []byte, what string, each func(body []byte)) (done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= 16 {
		n := int(ne.Uint32(b))
		if n < 16 || n > len(b) {
			return false, errors.New("sock_diag: a message is cut off")
		}
		body := b[16:n]
		switch ne.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errors.New("sock_diag: an error is cut off")
			}
			return false, fmt.Errorf("sock_diag cannot list %s: %w", what, unix.Errno(-int32(ne.Uint32(body))))
		case unix.SOCK_DIAG_BY_FAMILY:
			if len(body) < 16 {
				return false, errors.New("sock_diag: a socket is cut off")
			}
			each(body)
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return false, nil
}
