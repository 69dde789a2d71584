package kind

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// check checks what an image says of a socket.
func (w *unixWorld) check(n *unixNode) error {
	if n.Type != unix.SOCK_STREAM && n.Type != unix.SOCK_DGRAM && n.Type != unix.SOCK_SEQPACKET {
		return fmt.Errorf("a unix socket of type %d", n.Type)
	}
	if n.Shutdown > 3 || n.Mode > 0o7777 {
		return fmt.Errorf("a unix socket with shutdown %d and mode %#o", n.Shutdown, n.Mode)
	}
	if n.Reset && (!n.Connected || n.Peer != 0 || n.Type == unix.SOCK_DGRAM) {
		return errors.New("a unix socket with an error that it cannot have")
	}
	for _, o := range n.Opts {
		if size, ok := unixOpts[o.Opt]; !ok || len(o.Value) != size {
			return fmt.Errorf("an option %d of a unix socket with %d bytes, which this version does not know", o.Opt, len(o.Value))
		}
	}
	if len(n.Filter)%filterSize != 0 || len(n.Filter)/filterSize > maxFilter {
		return fmt.Errorf("a unix socket with a filter of %d bytes", len(n.Filter))
	}
	for _, f := range [...]func(n *unixNode) error{w.checkPeer, w.checkName, w.checkListening, w.checkMsgs} {
		if err := f(n); err != nil {
			return err
		}
	}
	return errors.Join(w.checkCred(n.Cred), w.checkCred(n.By))
}

// checkPeer checks how a socket is connected.
func (w *unixWorld) checkPeer(n *unixNode) error {
	dgram, waits := n.Type == unix.SOCK_DGRAM, w.waits[n.Ino]
	if n.Accepted && (dgram || !n.Connected || len(n.Name) == 0) {
		return errors.New("a unix socket that was accepted and has no other end or name")
	}
	if !dgram && (n.Connected || n.Listening) != (n.Cred != nil) {
		return errors.New("a connected unix socket without SO_PEERCRED, or an unconnected one with it")
	}
	if waits && (dgram || n.Listening || n.Accepted || n.Peer != 0 || n.By == nil) {
		return errors.New("a unix socket that cannot wait to be accepted")
	}
	if n.Reconnect && (!dgram || !n.Connected || n.Peer != 0 || n.Cred != nil || len(n.PeerName) == 0) {
		return errors.New("a unix socket that cannot be connected again")
	}
	if n.Peer == 0 {
		return nil
	}
	p := w.nodes[n.Peer]
	switch {
	case p == nil || p == n || p.Type != n.Type || !n.Connected || waits || !dgram && p.Peer != n.Ino:
		return fmt.Errorf("a unix socket whose other end %d is not one", n.Peer)
	case dgram && w.twin(n) == nil && len(p.Name) == 0:
		return errors.New("a unix socket that is connected to one without a name")
	case !dgram && n.Accepted == p.Accepted && (n.Accepted || w.twin(n) == nil):
		return errors.New("a pair of unix sockets with two different SO_PEERCRED")
	}
	return nil
}

// checkName checks the name.
func (w *unixWorld) checkName(n *unixNode) error {
	if len(n.Name) > unixPathMax+1 || len(n.PeerName) > unixPathMax+1 || isPath(n.PeerName) && pathName(n.PeerName) == "" {
		return fmt.Errorf("a unix socket with a name of %d bytes and the other of %d", len(n.Name), len(n.PeerName))
	}
	if !isPath(n.Name) {
		return nil
	}
	f := n.File
	if pathName(n.Name) == "" || f == nil || len(f.Path) == 0 || f.Path[0] != '/' || slices.Contains(f.Path, 0) || f.Mode > 0o177777 {
		return fmt.Errorf("a unix socket with the name %q and no file", n.Name)
	}
	return nil
}

// checkListening checks one that listens.
func (w *unixWorld) checkListening(n *unixNode) error {
	if !n.Listening {
		if len(n.Waiting) > 0 {
			return errors.New("a unix socket that does not listen, and connections that wait for it")
		}
		return nil
	}
	if n.Type == unix.SOCK_DGRAM || n.Connected || len(n.Name) == 0 || len(n.Msgs) > 0 {
		return errors.New("a unix socket that cannot listen")
	}
	if isPath(n.Name) && len(n.Waiting) > 0 && (n.File.Gone || len(n.File.Path) >= unixPathMax) {
		return errors.New("connections that wait for a unix socket with a name that leads nowhere")
	}
	return nil
}

// maxRights is SCM_MAX_FD: how many files go with one message.
const maxRights = 253

// checkMsgs checks what waits in it.
func (w *unixWorld) checkMsgs(n *unixNode) error {
	if len(n.Msgs) > maxUnixMsgs {
		return fmt.Errorf("a queue of %d messages", len(n.Msgs))
	}
	for i := range n.Msgs {
		m := &n.Msgs[i]
		if m.Len < 0 || m.Len > maxUnixQueue || len(m.From) > unixPathMax+1 || m.Mark > liveOOB {
			return fmt.Errorf("a message of %d bytes from %q", m.Len, m.From)
		}
		if len(m.Files) > maxRights || len(m.Files) > 0 && n.Type == unix.SOCK_STREAM && m.Len == 0 ||
			m.Mark != noMark && (n.Type != unix.SOCK_STREAM || len(m.Files) > 0) || m.Mark == liveOOB && m.Len == 0 {
			return fmt.Errorf("a message of %d bytes with %d files and mark %d", m.Len, len(m.Files), m.Mark)
		}
		if n.Type == unix.SOCK_STREAM && m.Len == 0 && m.Mark == noMark {
			return errors.New("an empty message in a stream")
		}
		for _, ref := range m.Files {
			if ref == 0 || int(ref) > len(w.e.Manifest.Files) {
				return fmt.Errorf("a file under way with number %d", ref)
			}
		}
		if isPath(m.From) && pathName(m.From) == "" {
			return fmt.Errorf("a message from %q", m.From)
		}
		if err := w.checkCred(m.Cred); err != nil {
			return err
		}
	}
	return nil
}

// checkCred checks credentials that a socket or message is to have. Without Help they must be those
// of a process of the image, which he who asks for the restore has been found to have himself.
func (w *unixWorld) checkCred(c *unixCred) error {
	if c == nil {
		return nil
	}
	if len(c.Groups) > 65536 {
		return fmt.Errorf("credentials with %d groups", len(c.Groups))
	}
	if w.e.Help {
		return nil
	}
	for i := range w.e.Manifest.Tasks {
		for k := range w.e.Manifest.Tasks[i].Threads {
			own := &w.e.Manifest.Tasks[i].Threads[k].Creds
			if !slices.Contains(own.UID[:], c.UID) || !slices.Contains(own.GID[:], c.GID) {
				continue
			}
			if !slices.ContainsFunc(c.Groups, func(g uint32) bool { return !slices.Contains(own.Groups, g) }) {
				return nil
			}
		}
	}
	return fmt.Errorf("credentials of uid %d and gid %d with groups %d, which no process of it has", c.UID, c.GID, c.Groups)
}
