package kind

import (
	"bytes"
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
	byRef map[image.ObjRef]*unixNode
	order []*unixNode
	gate  *unixGate
	left  map[[2]int]bool // by pid and number: sockets that processes have for the time
	waits map[uint64]bool // those that a listening one made: they wait to be accepted
}

// unixNode is one socket of it.
type unixNode struct {
	unixRec
	blob  image.ObjRef
	path  string
	fd    int // -1: not made yet
	named bool
	other int // an end that was closed everywhere, open until all is done; -1: there is none
}

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
	return errors.Join(w.leave(), w.closeGate())
}

// makeUnixWorld makes all unix sockets of the image.
func makeUnixWorld(e *Env) (*unixWorld, error) {
	w, err := readUnixWorld(e)
	if err != nil {
		return nil, err
	}
	for i, step := range [...]func(n *unixNode) error{w.join, w.make, w.name, w.listen, w.queueUp, w.reconnect, w.fill, w.connect, w.settle, w.setOptions, w.verify} {
		for _, n := range w.order {
			if err := step(n); err != nil {
				return nil, errors.Join(fmt.Errorf("%s: %w", n.path, err), w.Close())
			}
		}
		if i == 0 {
			if err := w.closeGate(); err != nil {
				return nil, errors.Join(err, w.Close())
			}
		}
	}
	return w, nil
}

// readUnixWorld reads the records.
func readUnixWorld(e *Env) (*unixWorld, error) {
	w := &unixWorld{e: e, nodes: map[uint64]*unixNode{}, byRef: map[image.ObjRef]*unixNode{}, left: map[[2]int]bool{}, waits: map[uint64]bool{}}
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
		w.nodes[n.Ino], w.byRef[image.ObjRef(i+1)], w.order = n, n, append(w.order, n)
	}
	for _, n := range w.order {
		for _, ino := range n.Waiting {
			if w.nodes[ino] == nil || w.waits[ino] {
				return nil, fmt.Errorf("%s: the image has a connection %d that waits for it and is not there, or twice", n.path, ino)
			}
			w.waits[ino] = true
		}
	}
	for _, n := range w.order {
		if err := w.check(n); err != nil {
			return nil, fmt.Errorf("%s: the image has %w", n.path, err)
		}
	}
	return w, nil
}

// make makes a socket, and its other end.
func (w *unixWorld) make(n *unixNode) error {
	if n.fd >= 0 || n.Listening || w.waits[n.Ino] {
		return nil // others make it
	}
	if n.Cred == nil {
		fd, err := unix.Socket(unix.AF_UNIX, int(n.Type)|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		n.fd = fd
		return nil
	}
	pair, err := w.pair(n)
	n.fd = pair[0]
	if p := w.twin(n); p != nil {
		p.fd = pair[1]
	} else {
		n.other = pair[1]
	}
	if err == nil && n.other >= 0 && len(n.PeerName) > 0 {
		err = bindAway(n.other, n.PeerName)
		if errors.Is(err, unix.EADDRINUSE) {
			w.e.Warn("%s: the name %s of its other end, which was closed, is in use: getpeername tells none", n.path, showName(n.PeerName))
			err = nil
		}
	}
	return err
}

// twin is the other end of a pair that was made by socketpair(2) and is one still, or nil.
func (w *unixWorld) twin(n *unixNode) *unixNode {
	p := w.nodes[n.Peer]
	if p == nil || p.Peer != n.Ino || n.Cred == nil || !n.Cred.equal(p.Cred) {
		return nil
	}
	return p
}

// name gives a socket its name, if it is there by now.
func (w *unixWorld) name(n *unixNode) error {
	switch {
	case len(n.Name) == 0 || n.Accepted || n.fd < 0 || n.named:
		return nil
	case !isPath(n.Name):
		n.named = true
		if err := addressed(unix.SYS_BIND, n.fd, sockaddr(n.Name)); err != nil {
			return fmt.Errorf("bind to %s: %w", showName(n.Name), err)
		}
		return nil
	}
	n.named = true
	if n.away() {
		return bindAway(n.fd, n.Name)
	}
	return w.bindFile(n)
}

// away reports whether the name of a socket is to lead nowhere: its file was deleted, or nobody can
// connect to it in any case.
func (n *unixNode) away() bool { return n.File.Gone || n.Connected && n.Type != unix.SOCK_DGRAM }

// reconnect lets go of the other end of socketpair(2), if a datagram socket had done that. It comes
// before anything waits in it, which would be lost.
func (w *unixWorld) reconnect(n *unixNode) error {
	if n.Type != unix.SOCK_DGRAM || n.Cred == nil || w.twin(n) != nil {
		return nil
	}
	if n.Connected {
		if n.Peer == 0 {
			return nil
		}
		return w.connectOne(n)
	}
	if err := addressed(unix.SYS_CONNECT, n.fd, make([]byte, 16)); err != nil { // AF_UNSPEC
		return fmt.Errorf("disconnect: %w", err)
	}
	return nil
}

// connect connects the other datagram sockets.
func (w *unixWorld) connect(n *unixNode) error {
	if n.Type != unix.SOCK_DGRAM || n.Cred != nil || !n.Connected {
		return nil
	}
	if n.Peer != 0 {
		return w.connectOne(n)
	}
	if n.Reconnect {
		addr := sockaddr(n.PeerName)
		dial := func() error { return addressed(unix.SYS_CONNECT, n.fd, addr) }
		var err error
		if w.e.Help {
			err = apartFS(w.rootOf(w.first()), "/", dial)
		} else {
			err = dial()
		}
		if err == nil {
			return nil
		}
		w.e.Warn("%s: it was connected to %s and cannot be connected again: %v; writing to it gives ECONNREFUSED", n.path, showName(n.PeerName), err)
	}
	gone, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(gone)
	if len(n.PeerName) > 0 {
		err = bindAway(gone, n.PeerName)
	}
	if len(n.PeerName) == 0 || errors.Is(err, unix.EADDRINUSE) {
		err = bindAuto(gone)
	}
	if err != nil {
		return err
	}
	name, err := socketAddr(gone, unix.SYS_GETSOCKNAME)
	if err != nil {
		return err
	}
	return w.e.In(w.first(), func(Process) error { return connectTo(n.fd, gone, name) })
}

func (w *unixWorld) connectOne(n *unixNode) error {
	p := w.nodes[n.Peer]
	err := w.e.In(w.first(), func(Process) error { return connectTo(n.fd, p.fd, p.Name) })
	if err != nil {
		return fmt.Errorf("connect to %s: %w", showName(p.Name), err)
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
	senders := unixSenders{w: w, to: n, own: map[string]int{}}
	defer senders.close()
	for i := range n.Msgs {
		m := &n.Msgs[i]
		if int(m.Len) > len(data) {
			return errors.New("the image has less for it than it says")
		}
		if err := senders.send(m, data[:m.Len]); err != nil {
			return fmt.Errorf("send it what waited in it (message %d of %d, %d bytes): %w", i+1, len(n.Msgs), m.Len, err)
		}
		data = data[m.Len:]
	}
	if len(data) != 0 {
		return errors.New("the image has more for it than it says")
	}
	return nil
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
		if err := o.set(n.fd, w.e); err != nil {
			return err
		}
	}
	if err := attachFilter(n.fd, n.Filter); err != nil {
		return err
	}
	for _, o := range n.Opts {
		if o.Opt != unix.SO_LOCK_FILTER {
			continue
		}
		if err := setUnixOpt(n.fd, o.Opt, o.Value); err != nil {
			return fmt.Errorf("SO_LOCK_FILTER: %w", err)
		}
	}
	return w.e.In(w.first(), func(Process) error {
		if err := giveTo(n.fd, n.UID, n.GID); err != nil {
			w.e.Warn("%s: %v", n.path, err)
		}
		return unix.Fchmod(n.fd, n.Mode)
	})
}

// verify compares what came out with the record.
func (w *unixWorld) verify(n *unixNode) error {
	name, err := socketAddr(n.fd, unix.SYS_GETSOCKNAME)
	if err != nil {
		return err
	}
	if !bytes.Equal(name, n.Name) {
		return fmt.Errorf("its name came out as %s, not %s", showName(name), showName(n.Name))
	}
	cred, err := peerCred(n.fd)
	if err != nil {
		return err
	}
	want := n.Cred
	if want != nil {
		c := *want
		c.PID = int32(w.maker(want))
		want = &c
	}
	if !cred.equal(want) {
		return fmt.Errorf("its SO_PEERCRED came out as %+v, not %+v", cred, want)
	}
	return nil
}
