package kind

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// Connections that wait to be accepted, and what was sent on them already. Nobody has a descriptor of the end
// that waits; it is found in the kernel's memory. They are made again by connect(2), in their order, from the
// other end, which must be in the tree: nothing but a connection of its own puts a socket
// into the queue of one that listens.

// unaccepted are the TCP connections that wait for the sockets of the tree to be accepted.
type unaccepted struct {
	byClient map[ends]*tcpWaiting // as the client's end sees it
	of       map[*Found][]kmem.TCPWaiting
	errs     map[*Found]error
}

// tcpWaiting is one of them.
type tcpWaiting struct {
	kmem.TCPWaiting
	place int // in the queue, from 0
}

// waitingFor reads, once, the queues of all listening sockets of the tree that have one.
func (s *Scene) waitingFor() *unaccepted {
	if s.unaccepted != nil {
		return s.unaccepted
	}
	u := &unaccepted{map[ends]*tcpWaiting{}, map[*Found][]kmem.TCPWaiting{}, map[*Found]error{}}
	s.unaccepted = u
	for _, f := range s.Files {
		if !(inetSock{}).Match(f) || f.ofInet().typ != unix.SOCK_STREAM {
			continue
		}
		in, err := f.tcpInfo()
		if err != nil || in.state != stateListen || in.waiting == 0 {
			continue
		}
		m, err := kmem.Open()
		if err == nil {
			u.of[f], err = m.TCPAccepting(f.FD)
		}
		if u.errs[f] = err; err != nil || f.sharesPort() {
			continue
		}
		for i, c := range u.of[f] {
			u.byClient[ends{local: c.Peer, peer: c.Local}] = &tcpWaiting{c, i}
		}
	}
	return u
}

// acceptFindings tells which of the connections that wait for a listening TCP socket cannot be kept.
func (f *Found) acceptFindings(s *Scene, n uint32) []image.Finding {
	u := s.waitingFor()
	why := ""
	switch all := u.of[f]; {
	case u.errs[f] != nil:
		why = fmt.Sprintf("%s to be accepted by it, and cannot be looked at: %v", waitText(n), u.errs[f])
	case len(all) < int(n) && s.Still:
		why = fmt.Sprintf("%s to be accepted by it, of which only %d are found in the kernel", waitText(n), len(all))
	case len(all) == 0:
		return nil // the program has accepted them meanwhile
	case f.sharesPort():
		why = fmt.Sprintf("%s to be accepted by it, which shares its port (SO_REUSEPORT): the kernel may give them to another socket", waitText(n))
	default:
		for i := range all {
			if why = s.whyNotAccept(&all[i]); why != "" {
				break
			}
		}
	}
	const remedy = "try again when the program has accepted it"
	set := s.Policy.Get("tcp")
	switch {
	case why == "":
		return nil
	case set == "reset" || set == "close":
		return []image.Finding{f.lose(fmt.Sprintf("%s; those from outside the tree will be gone (policy tcp=%s)", why, set), remedy)}
	}
	return []image.Finding{f.refuse(why, remedy+", or choose --policy tcp=reset")}
}

// whyNotAccept tells why a connection that waits cannot be made again, or "".
func (s *Scene) whyNotAccept(c *kmem.TCPWaiting) string {
	switch client := s.connected()[ends{local: c.Peer, peer: c.Local}]; {
	case client == nil:
		return fmt.Sprintf("a connection waits to be accepted by it from %s, which is outside the tree or has ended", c.Peer)
	case c.State != tcpEstablished && c.State != tcpCloseWait && c.Awkward == "":
		return fmt.Sprintf("a connection waits to be accepted by it from %s, and is still being made", c.Peer)
	case c.Awkward != "":
		return fmt.Sprintf("a connection waits to be accepted by it from %s, and %s", c.Peer, c.Awkward)
	}
	return ""
}

// sharesPort reports whether several sockets may listen on the port of this one.
func (f *Found) sharesPort() bool {
	v, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	return err != nil || v != 0
}

// keptWaiting returns the other end of a connection that waits to be accepted in the tree and can be kept, or nil.
func (s *Scene) keptWaiting(e ends) *tcpWaiting {
	u := s.waitingFor()
	c := u.byClient[e]
	if c == nil || s.whyNotAccept(&c.TCPWaiting) != "" {
		return nil
	}
	return c
}

// addWaiting makes of the record of a client one that is made by connect(2), and returns all that it has sent:
// what has come to the other end, and what has not.
func (r *inetRec) addWaiting(c *tcpWaiting, data []byte) ([]byte, error) {
	came := c.Copied + uint32(len(c.Data))
	has := int32(came - r.Conn.SendSeq) // of what the client has yet to hear of
	if r.Conn.RecvLen != 0 || r.Conn.GotFIN || has < 0 || uint32(has) > r.Conn.SendLen {
		return nil, errors.New("data was on its way while it was looked at")
	}
	data = append(c.Data[:len(c.Data):len(c.Data)], data[has:]...)
	if len(data) > maxTCPQueue {
		return nil, errors.New("more than 64 MiB wait in it")
	}
	r.Conn.SendSeq, r.Conn.SendLen, r.Conn.Unsent = c.Copied, uint32(len(data)), 0
	r.Conn.Waits = uint32(c.place) + 1
	return data, nil
}

// unixSent is what was sent to the connections that wait for one listening unix socket.
func (s *Scene) unixSent(f *Found) (map[uint64]*kmem.UnixWaiting, error) {
	if got, ok := s.unixAccept[f]; ok {
		return got.by, got.err
	}
	if s.unixAccept == nil {
		s.unixAccept = map[*Found]unixAccept{}
	}
	m, err := kmem.Open()
	got := unixAccept{by: map[uint64]*kmem.UnixWaiting{}, err: err}
	if err == nil {
		var all []kmem.UnixWaiting
		all, got.err = m.UnixAccepting(f.FD)
		for i := range all {
			got.by[all[i].Peer] = &all[i]
		}
	}
	s.unixAccept[f] = got
	return got.by, got.err
}

// unixAccept is what unixSent has found.
type unixAccept struct {
	by  map[uint64]*kmem.UnixWaiting // by the inode number of the client
	err error
}

// whyNotSent tells why what was sent to a connection that waits cannot be sent again, or "".
func (f *Found) whyNotSent(client *Found, s *Scene) string {
	if n, err := unix.IoctlGetInt(client.FD, unix.TIOCOUTQ); err == nil && n == 0 {
		return "" // nothing
	}
	const what = "a connection waits to be accepted by it that data was sent on"
	by, err := s.unixSent(f)
	if err != nil {
		return fmt.Sprintf("%s, and that cannot be looked at: %v", what, err)
	}
	switch c := by[client.Stat.Ino]; {
	case c == nil:
		return "" // the program has accepted it meanwhile
	case c.Awkward != "":
		return what + ", and " + c.Awkward
	case len(c.Messages) > maxUnixMsgs:
		return fmt.Sprintf("%s, more than %d messages", what, maxUnixMsgs)
	}
	return ""
}

// sentBy is what a client has sent to the listening socket that has yet to accept it.
func (s *Scene) sentBy(client *Found, at uint32) (data []byte, msgs []unixMsg, err error) {
	f := s.socketByNumber(s.sockDev, at)
	if f == nil {
		return nil, nil, nil // it is outside the tree
	}
	if n, err := unix.IoctlGetInt(client.FD, unix.TIOCOUTQ); err == nil && n == 0 {
		return nil, nil, nil
	}
	by, err := s.unixSent(f)
	if err != nil {
		return nil, nil, err
	}
	c := by[client.Stat.Ino]
	if c == nil || c.Awkward != "" {
		return nil, nil, errors.New("what it has sent cannot be looked at any more")
	}
	for _, m := range c.Messages {
		msg := unixMsg{Len: int32(len(m.Data))}
		if m.PID != 0 {
			msg.Cred = &unixCred{PID: int32(m.PID), UID: m.UID, GID: m.GID}
		}
		data, msgs = append(data, m.Data...), append(msgs, msg)
	}
	return data, msgs, nil
}
