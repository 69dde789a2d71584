package kind

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// unixWorld is every unix socket of an image while they are made. It is made as a whole by the
// first Open, and what is left of it is closed when every file is open.
type unixWorld struct {
	e     *Env
	nodes map[uint64]*unixNode // by inode number
	order []*unixNode
}

// unixNode is one socket of it.
type unixNode struct {
	unixRec
	blob  image.ObjRef
	path  string
	fd    int // -1: not made yet
	other int // an end that was closed everywhere, open until all is done; -1: there is none
}

// Dead is Later.Dead.
func (unixSock) Dead(*image.File) (*Dead, error) { return nil, nil }

func (unixSock) Open(rec *image.File, e *Env) (int, error) {
	var r unixRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	w, err := shared(e, "unix sockets", func() (*unixWorld, error) { return makeUnixWorld(e) })
	if err != nil {
		if !e.Help && errors.Is(err, os.ErrPermission) {
			err = errors.New(err.Error()) // nobody is to try it again with more privileges
		}
		return -1, err
	}
	n := w.nodes[r.Ino]
	if n == nil {
		return -1, fmt.Errorf("the unix socket %d is not in the image", r.Ino)
	}
	fd, err := dup(n.fd)
	if err == nil {
		fd, err = finished(fd, rec.Flags, 0, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", rec.Path, err)
	}
	return fd, nil
}

// Close closes our descriptors. With that an end has gone whose process had closed it.
func (w *unixWorld) Close() error {
	for _, n := range w.order {
		closeOwn(slices.DeleteFunc([]int{n.fd, n.other}, func(fd int) bool { return fd < 0 }))
		n.fd, n.other = -1, -1
	}
	return nil
}

// makeUnixWorld makes all unix sockets of the image.
func makeUnixWorld(e *Env) (*unixWorld, error) {
	w, err := readUnixWorld(e)
	if err != nil {
		return nil, err
	}
	for _, step := range [...]func(n *unixNode) error{w.make, w.fill, w.settle, w.setOptions} {
		for _, n := range w.order {
			if err := step(n); err != nil {
				_ = w.Close() // never used
				return nil, fmt.Errorf("%s: %w", n.path, err)
			}
		}
	}
	return w, nil
}

// readUnixWorld reads the records.
func readUnixWorld(e *Env) (*unixWorld, error) {
	w := &unixWorld{e: e, nodes: map[uint64]*unixNode{}}
	for i := range e.Manifest.Files {
		rec := &e.Manifest.Files[i]
		if rec.Kind != (unixSock{}).Name() {
			continue
		}
		n := &unixNode{blob: rec.Blob, path: rec.Path, fd: -1, other: -1}
		if err := decodeRec(rec, &n.unixRec); err != nil {
			return nil, err
		}
		if n.Ino == 0 || w.nodes[n.Ino] != nil {
			return nil, fmt.Errorf("%s: the image has the unix socket %d twice", rec.Path, n.Ino)
		}
		w.nodes[n.Ino], w.order = n, append(w.order, n)
	}
	for _, n := range w.order {
		if err := w.check(n); err != nil {
			return nil, fmt.Errorf("%s: the image has %w", n.path, err)
		}
	}
	return w, nil
}

// check checks what an image says of a socket.
func (w *unixWorld) check(n *unixNode) error {
	if n.Type != unix.SOCK_STREAM && n.Type != unix.SOCK_DGRAM && n.Type != unix.SOCK_SEQPACKET {
		return fmt.Errorf("a unix socket of type %d", n.Type)
	}
	if n.Peer != 0 {
		p := w.nodes[n.Peer]
		if p == nil || p == n || p.Type != n.Type || !n.Connected || p.Peer != n.Ino {
			return fmt.Errorf("a unix socket whose other end %d is not one", n.Peer)
		}
	}
	if n.Connected && n.Cred == nil {
		return errors.New("a connected unix socket without SO_PEERCRED")
	}
	if n.Peer != 0 && !n.Cred.equal(w.nodes[n.Peer].Cred) {
		return errors.New("a pair of unix sockets with two different SO_PEERCRED")
	}
	if n.Shutdown > 3 || n.Mode > 0o7777 {
		return fmt.Errorf("a unix socket with shutdown %d and mode %#o", n.Shutdown, n.Mode)
	}
	if n.Reset && (!n.Connected || n.Peer != 0 || n.Type == unix.SOCK_DGRAM) {
		return errors.New("a unix socket with an error that it cannot have")
	}
	for _, o := range n.Opts {
		if !slices.Contains(unixOpts[:], o.Opt) {
			return fmt.Errorf("an option %d of a unix socket, which this version does not know", o.Opt)
		}
	}
	if err := w.checkCred(n.Cred); err != nil {
		return err
	}
	if len(n.Msgs) > maxUnixMsgs {
		return fmt.Errorf("a queue of %d messages", len(n.Msgs))
	}
	for i := range n.Msgs {
		m := &n.Msgs[i]
		if m.Len < 0 || m.Len > maxUnixQueue || len(m.From) > unixPathMax || m.Mark > liveOOB {
			return fmt.Errorf("a message of %d bytes from %q", m.Len, m.From)
		}
		if err := w.checkCred(m.Cred); err != nil {
			return err
		}
	}
	return nil
}

// unixPathMax is the size of sun_path.
const unixPathMax = 108

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

// make makes a socket, and its other end.
func (w *unixWorld) make(n *unixNode) error {
	if n.fd >= 0 {
		return nil
	}
	if !n.Connected {
		fd, err := unix.Socket(unix.AF_UNIX, int(n.Type)|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		n.fd = fd
		return nil
	}
	pair, err := w.pair(n)
	if err != nil {
		return err
	}
	n.fd = pair[0]
	if n.Peer == 0 {
		n.other = pair[1]
	} else {
		w.nodes[n.Peer].fd = pair[1]
	}
	return nil
}

// fill sends once more what waits in a queue.
func (w *unixWorld) fill(n *unixNode) error {
	if len(n.Msgs) == 0 {
		return nil
	}
	var data []byte
	if n.blob != 0 {
		var err error
		if data, err = w.e.Blob(n.blob); err != nil {
			return fmt.Errorf("what waits in it: %w", err)
		}
	}
	from := n.other
	if n.Peer != 0 {
		from = w.nodes[n.Peer].fd
	}
	if from < 0 {
		return errors.New("the image has messages for it that nobody can send")
	}
	widen(from)
	for i := range n.Msgs {
		m := &n.Msgs[i]
		if int(m.Len) > len(data) {
			return errors.New("the image has less for it than it says")
		}
		if err := w.send(n, from, m, data[:m.Len]); err != nil {
			return fmt.Errorf("send it what waited in it (message %d of %d, %d bytes): %w", i+1, len(n.Msgs), m.Len, err)
		}
		data = data[m.Len:]
	}
	if len(data) != 0 {
		return errors.New("the image has more for it than it says")
	}
	return nil
}

// widen gives a socket room for what is to be sent. Its own size comes later.
func widen(fd int) {
	const room = 2 * maxUnixQueue
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, room) == nil {
		return
	}
	have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil || unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, room) != nil {
		return // then sending says what is missing
	}
	if now, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && now < have {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, have/2)
	}
}

// send sends one message, or one run of a stream.
func (w *unixWorld) send(n *unixNode, from int, m *unixMsg, data []byte) error {
	control := []byte(nil)
	if m.Cred != nil {
		control = unix.UnixCredentials(&unix.Ucred{Pid: m.Cred.PID, Uid: m.Cred.UID, Gid: m.Cred.GID})
	}
	for {
		sent := 0
		send := func(Process) (err error) {
			sent, err = unix.SendmsgN(from, data, control, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return err
		}
		var err error
		if m.Cred == nil {
			err = send(nil)
		} else { // to name another process takes our own credentials
			err = w.e.In(w.first(), send)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if data = data[sent:]; len(data) == 0 {
			return nil
		}
	}
}

// first is the first process of the tree.
func (w *unixWorld) first() int {
	if len(w.e.Manifest.Tasks) == 0 {
		return 0
	}
	return int(w.e.Manifest.Tasks[0].PID)
}

// settle shuts down what was shut down, when all that was to be sent is.
func (w *unixWorld) settle(n *unixNode) error {
	if n.Reset { // the other end closes with something unread
		if _, err := unix.Write(n.fd, []byte{0}); err != nil {
			return fmt.Errorf("send something that is not read: %w", err)
		}
	}
	if n.Shutdown == 0 {
		return nil
	}
	how := [...]int{1: unix.SHUT_RD, 2: unix.SHUT_WR, 3: unix.SHUT_RDWR}[n.Shutdown]
	if n.other >= 0 && n.Type != unix.SOCK_DGRAM {
		return nil // closing the other end does that
	}
	if err := unix.Shutdown(n.fd, how); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return nil
}

// setOptions sets the options, and the owner of the inode.
func (w *unixWorld) setOptions(n *unixNode) error {
	for _, o := range n.Opts {
		if err := setUnixOpt(n.fd, o); err != nil {
			return err
		}
	}
	return w.e.In(w.first(), func(Process) error {
		if err := giveTo(n.fd, n.UID, n.GID); err != nil {
			w.e.Warn("%s: %v", n.path, err)
		}
		return unix.Fchmod(n.fd, n.Mode)
	})
}

// setUnixOpt sets an option that is another one now.
func setUnixOpt(fd int, o unixOpt) error {
	have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, int(o.Opt))
	if err == nil && have == int(o.Value) {
		return nil
	}
	value, force := int(o.Value), 0
	switch o.Opt { // these are told twice as large as they are set
	case unix.SO_SNDBUF:
		value, force = value/2, unix.SO_SNDBUFFORCE
	case unix.SO_RCVBUF:
		value, force = value/2, unix.SO_RCVBUFFORCE
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, int(o.Opt), value)
	}
	if err == nil {
		have, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, int(o.Opt))
	}
	if err == nil && have != int(o.Value) && force != 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, value)
	}
	if err != nil {
		return fmt.Errorf("set its option %d to %d: %w", o.Opt, o.Value, err)
	}
	return nil
}
