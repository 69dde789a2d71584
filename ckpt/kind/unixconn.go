package kind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Connections that came about by connect(2) and accept(2). The end that was accepted has the name
// of the socket that listened. It is made by one that listens for the time, so that whether the real
// one is still there does not matter; the real ones are made when all these are gone.

// unixGate is a socket that listens for the time.
type unixGate struct {
	name  []byte
	typ   int32
	cred  *unixCred // whose listen(2) it was
	fd    int
	stage *unixStage
	root  string // of the processes that connect to it
	addr  []byte // where they reach it
}

// join makes a connection by connect(2) and accept(2), if n is an end of one that nobody else makes:
// the one that was accepted, or one whose other end was closed and had a name.
func (w *unixWorld) join(n *unixNode) error {
	switch {
	case n.Type == unix.SOCK_DGRAM || !n.Connected || w.waits[n.Ino]:
		return nil
	case n.Accepted && n.Peer != 0:
		return w.accept(n, w.nodes[n.Peer], n.Name)
	case n.Accepted:
		client := &unixNode{unixRec: unixRec{Type: n.Type, Name: n.PeerName, File: &unixFile{Gone: true}}, fd: -1, other: -1}
		err := w.accept(n, client, n.Name)
		n.other = client.fd
		return err
	case n.Peer == 0 && len(n.PeerName) > 0 && w.gateFits(n.PeerName):
		server := &unixNode{unixRec: unixRec{Type: n.Type, Cred: n.Cred}, fd: -1, other: -1}
		err := w.accept(server, n, n.PeerName)
		n.other = server.fd
		return err
	}
	return nil
}

// accept connects client to a socket with that name, and makes n of what accept(2) returns.
func (w *unixWorld) accept(n, client *unixNode, name []byte) error {
	g, err := w.gateFor(name, n.Type, client.Cred, w.rootOf(w.maker(n.Cred)))
	if err != nil {
		return err
	}
	if err := w.dial(client, n.Cred, g.addr); err != nil {
		return err
	}
	if n.fd, _, err = unix.Accept4(g.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	return w.name(client)
}

// gateFits reports whether a socket can listen for the time under a name: a path does not matter, and
// an abstract name must be free.
func (w *unixWorld) gateFits(name []byte) bool {
	return isPath(name) || w.gate != nil && slices.Equal(w.gate.name, name) || abstractTaken(name) == nil
}

// gateFor returns a listening socket with that name for processes with that root directory, the one
// of before if it will do.
func (w *unixWorld) gateFor(name []byte, typ int32, cred *unixCred, root string) (*unixGate, error) {
	if g := w.gate; g != nil && slices.Equal(g.name, name) && g.typ == typ && g.root == root && g.cred.equal(cred) {
		return g, nil
	}
	if err := w.closeGate(); err != nil {
		return nil, err
	}
	r, err := w.socketIn(cred, typ)
	if err != nil {
		return nil, err
	}
	g := &unixGate{name: name, typ: typ, cred: cred, root: root, fd: r.fd, addr: sockaddr(name)}
	w.gate = g
	if root != "/" && !w.e.Help { // it may be a folder of the user, who could put another in the place of ours
		return nil, fmt.Errorf("a connection in the root directory %s, which only root can restore", root)
	}
	if !isPath(name) {
		if err := addressed(unix.SYS_BIND, g.fd, g.addr); err != nil {
			return nil, fmt.Errorf("bind to %s: %w", showName(name), err)
		}
	} else if err := g.enter(); err != nil {
		return nil, err
	}
	return g, w.listenIn(r, cred, 1)
}

// enter gives the socket its name in a folder, which the processes can reach.
func (g *unixGate) enter() (err error) {
	parent := ""
	if g.root != "/" {
		parent = g.root
	}
	if g.stage, err = newUnixStage(parent); err != nil {
		return err
	}
	at, err := g.stage.bind(g.fd, g.name)
	if err != nil {
		return err
	}
	g.addr = append(sockaddr([]byte(inside(g.root, at))), 0)
	return nil
}

// closeGate ends the listening for the time.
func (w *unixWorld) closeGate() error {
	g := w.gate
	if g == nil {
		return nil
	}
	w.gate = nil
	if g.fd >= 0 {
		unix.Close(g.fd)
	}
	if g.stage != nil {
		return g.stage.close()
	}
	return nil
}

// remoteSock is a socket that a process made: its number there, and a descriptor of ours that stays.
type remoteSock struct{ pid, num, fd int }

// socketIn makes a socket in the process that cred names.
func (w *unixWorld) socketIn(cred *unixCred, typ int32) (r remoteSock, err error) {
	err = w.e.In(w.maker(cred), func(p Process) error {
		num, err := p.Syscall(unix.SYS_SOCKET, unix.AF_UNIX, uint64(typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK), 0)
		if err != nil {
			return fmt.Errorf("socket in pid %d: %w", p.PID(), err)
		}
		r.pid, r.num = p.PID(), int(num)
		w.left[[2]int{r.pid, r.num}] = true
		r.fd, err = fetchFrom(p, r.num)
		return err
	})
	return r, err
}

// leave closes the descriptors that processes have still, as something has failed: it may be tried
// again with other privileges.
func (w *unixWorld) leave() error {
	var errs []error
	for at := range w.left {
		errs = append(errs, w.e.In(at[0], func(p Process) error {
			_, err := p.Syscall(unix.SYS_CLOSE, uint64(at[1]))
			return err
		}))
	}
	clear(w.left)
	return errors.Join(errs...)
}

// lastIn makes one call with it as the user that SO_PEERCRED is to tell, and closes it there.
func (w *unixWorld) lastIn(r remoteSock, cred *unixCred, f func(p Process) error) error {
	return w.e.In(r.pid, func(p Process) error {
		err := asCred(p, cred, func() error { return f(p) })
		delete(w.left, [2]int{r.pid, r.num})
		if _, cerr := p.Syscall(unix.SYS_CLOSE, uint64(r.num)); err == nil && cerr != nil {
			err = fmt.Errorf("close descriptor %d of pid %d: %w", r.num, r.pid, cerr)
		}
		return err
	})
}

func (w *unixWorld) listenIn(r remoteSock, cred *unixCred, backlog uint32) error {
	return w.lastIn(r, cred, func(p Process) error {
		if _, err := p.Syscall(unix.SYS_LISTEN, uint64(r.num), uint64(backlog)); err != nil {
			return fmt.Errorf("listen in pid %d: %w", r.pid, err)
		}
		return nil
	})
}

// dial makes a socket in a process and connects it there.
func (w *unixWorld) dial(n *unixNode, by *unixCred, addr []byte) error {
	r, err := w.socketIn(by, n.Type)
	if err != nil {
		return err
	}
	n.fd = r.fd
	return w.lastIn(r, by, func(p Process) error {
		at, err := p.Put(addr)
		if err != nil {
			return err
		}
		if _, err := p.Syscall(unix.SYS_CONNECT, uint64(r.num), at, uint64(len(addr))); err != nil {
			return fmt.Errorf("connect in pid %d to %s: %w", r.pid, showName(addr[2:]), err)
		}
		return nil
	})
}

// listen makes a socket listen under its name.
func (w *unixWorld) listen(n *unixNode) error {
	if !n.Listening {
		return nil
	}
	r, err := w.socketIn(n.Cred, n.Type)
	if err != nil {
		return err
	}
	n.fd = r.fd
	if err := w.name(n); err != nil {
		return err
	}
	return w.listenIn(r, n.Cred, n.Backlog)
}

// queueUp connects those that wait to be accepted, in their order.
func (w *unixWorld) queueUp(n *unixNode) error {
	addr := sockaddr(n.Name)
	for _, ino := range n.Waiting {
		c := w.nodes[ino]
		if isPath(n.Name) {
			root := w.rootOf(w.maker(c.By))
			addr = append(sockaddr([]byte(inside(root, string(n.File.Path)))), 0)
		}
		if err := w.dial(c, c.By, addr); err != nil {
			return err
		}
		if err := w.name(c); err != nil {
			return err
		}
	}
	return nil
}

// pair makes the two ends of a connection by socketpair(2).
func (w *unixWorld) pair(n *unixNode) (pair [2]int, err error) {
	pair = [2]int{-1, -1}
	err = w.e.In(w.maker(n.Cred), func(p Process) error {
		return asCred(p, n.Cred, func() error {
			at, err := p.Put(make([]byte, 8))
			if err != nil {
				return err
			}
			if _, err := p.Syscall(unix.SYS_SOCKETPAIR, unix.AF_UNIX, uint64(n.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK), 0, at); err != nil {
				return fmt.Errorf("socketpair in pid %d: %w", p.PID(), err)
			}
			b, err := readFrom(p.PID(), at, 8)
			if err != nil {
				return err
			}
			for i := range pair {
				num := int(binary.NativeEndian.Uint32(b[4*i:]))
				var ferr error
				pair[i], ferr = fetchFrom(p, num)
				_, cerr := p.Syscall(unix.SYS_CLOSE, uint64(num))
				err = errors.Join(err, ferr, cerr)
			}
			return err
		})
	})
	return pair, err
}
