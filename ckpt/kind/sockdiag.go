package kind

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// diagPatience is how long sock_diag(7) may take for an answer.
const diagPatience = 5 * time.Second

// listSockets asks sock_diag(7) for all sockets of a family in our network namespace. body is the request that follows
// the struct nlmsghdr. parse gets each datagram of the answer and says whether it is the last.
func listSockets(body []byte, parse func(b []byte) (done bool, err error)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return fmt.Errorf("socket for sock_diag: %w", err)
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(diagPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return fmt.Errorf("sock_diag: SO_RCVTIMEO: %w", err)
	}
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
