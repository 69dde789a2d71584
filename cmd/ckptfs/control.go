package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/ckptfs/ckptfs/fusefs"
	"github.com/ckptfs/ckptfs/store"
)

// control answers the commands that want something of a store which this mount has.
type control struct {
	st   *store.Store
	srv  *fusefs.Server
	key  *store.Key // nil: the store is not encrypted
	dir  string     // the local folder of the store
	name string     // what the store is called
	logf func(format string, args ...any)

	listener net.Listener
	ctx      context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// listen makes the socket and serves it until close. The store is locked by us, so a socket
// that is there belongs to nobody any more.
func (c *control) listen() error {
	path, done, err := controlPath(c.dir)
	if err != nil {
		return err
	}
	defer done()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of a mount that died: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen for other commands on %s: %w", filepath.Join(c.dir, controlName), err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // its path is a descriptor that is closed by then
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	c.listener = l
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.running.Go(c.accept)
	return nil
}

// controlPath is a path of the socket in a store's folder that is short enough for one, until
// done is called.
func controlPath(dir string) (path string, done func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), controlName), func() { d.Close() }, nil
}

// close ends what goes on for others and removes the socket.
func (c *control) close() error {
	c.stop()
	err := c.listener.Close()
	c.running.Wait()
	return errors.Join(err, os.Remove(filepath.Join(c.dir, controlName)))
}

func (c *control) accept() {
	for {
		conn, err := c.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			c.logf("a command that asks for the store: %v", err)
			time.Sleep(time.Second) // out of descriptors, perhaps: that passes
			continue
		}
		c.running.Go(func() { c.serve(conn) })
	}
}

// serve answers one question.
func (c *control) serve(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })() // nobody is waited for at the end
	out := &replies{conn: conn}
	q, err := c.greet(conn)
	if err != nil {
		out.send(reply{Done: true, Error: wire(err)})
		return
	}
	go func() { // a command that ends hangs up
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	beat := time.NewTicker(controlBeat)
	defer beat.Stop()
	go func() {
		for {
			select {
			case <-beat.C:
				out.send(reply{})
			case <-ctx.Done():
				return
			}
		}
	}()
	result, err := c.do(ctx, q, out)
	last := reply{Done: true, Error: wire(err)}
	if last.Result, err = json.Marshal(result); err != nil {
		last.Error = wire(err)
	}
	out.send(last)
}

// greet tells a command what is needed, reads what it wants, and checks that it has the key.
func (c *control) greet(conn net.Conn) (*request, error) {
	g := greeting{Protocol: controlProtocol, PID: os.Getpid(), Sealed: c.key != nil, Challenge: make([]byte, 32)}
	rand.Read(g.Challenge) // never fails, see crypto/rand
	if err := conn.SetDeadline(time.Now().Add(controlPatience)); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(conn).Encode(g); err != nil {
		return nil, err
	}
	q, err := parseRequest(bufio.NewReader(conn))
	if err != nil {
		return nil, err
	}
	if c.key != nil {
		want := c.key.Prove(g.Challenge)
		if subtle.ConstantTimeCompare(want[:], q.Proof) != 1 {
			return nil, &store.KeyError{Dir: c.name, Sealed: true, Given: len(q.Proof) > 0}
		}
	}
	return q, conn.SetDeadline(time.Time{})
}

// do does what a request asks for.
func (c *control) do(ctx context.Context, q *request, out *replies) (any, error) {
	who := fmt.Sprintf("pid %d", q.PID)
	switch q.Op {
	case "list":
		return c.st.List()
	case "stats":
		return c.st.Stats()
	case "served":
		return ourselves(), nil
	case "verify":
		ctx = store.WithProgress(ctx, seldom(func(done, total int64) { out.send(reply{Read: done, Total: total}) }))
		return nil, c.st.Verify(ctx, q.ReadData, func(s string) { out.send(reply{Fault: s}) })
	case "prune":
		return c.srv.Prune(ctx, q.policy(), who)
	case "gc":
		return c.srv.GC(ctx, who)
	}
	return c.st.Settle(ctx, max(1, min(q.Workers, runtime.GOMAXPROCS(0))))
}

// seldom passes on what is told often.
func seldom(report func(done, total int64)) func(done, total int64) {
	var last time.Time
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) > 200*time.Millisecond {
			last = now
			report(done, total)
		}
	}
}

// replies sends lines, one at a time.
type replies struct {
	mu   sync.Mutex
	conn net.Conn
}

// send sends one line. Whom it does not reach has hung up, which ends the work by itself.
func (r *replies) send(line reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = json.NewEncoder(r.conn).Encode(line)
}
