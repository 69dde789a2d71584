package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/ckptfs/ckptfs/store"
	"golang.org/x/sys/unix"
)

// storeAPI is what the commands on a store need of it. *store.Store has it, and so has a mount that
// holds the store.
type storeAPI interface {
	List() ([]store.Image, error)
	Stats() (store.Stats, error)
	Verify(ctx context.Context, readData bool, report func(string)) error
	Prune(ctx context.Context, p store.Policy) (store.PruneReport, error)
	GC(ctx context.Context) (store.GCReport, error)
	Settle(ctx context.Context, workers int) (store.GCReport, error)
	Close() error
}

// How long a store is waited for that a short-lived command has.
const (
	lockPatience = 5 * time.Second
	lockPause    = 100 * time.Millisecond
)

// openOrAsk opens the store, or finds the mount that has it. Another command that has it is
// waited for.
func (f *storeFlags) openOrAsk(ctx context.Context, c *console) (storeAPI, error) {
	for since, said := time.Now(), false; ; {
		st, err := f.open(func(s string) { c.notef("%s", s) })
		if err == nil {
			return st, nil
		}
		var locked *store.LockedError
		if !errors.As(err, &locked) {
			return nil, err
		}
		held := &heldStore{ctx: ctx, dir: f.folder(), place: f.place}
		if held.key, err = f.key(); err != nil {
			return nil, err
		}
		conn, err := held.dial()
		if err == nil {
			conn.Close()
			return held, nil
		}
		if time.Since(since) > lockPatience {
			return nil, locked
		}
		if !said && time.Since(since) > time.Second {
			c.notef("process %d has the store; waiting for its end", locked.PID)
			said = true
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// heldStore is a store that a mount has.
type heldStore struct {
	ctx        context.Context // of the command
	dir, place string
	key        *store.Key // what this command was given; nil: none
}

func (h *heldStore) dial() (net.Conn, error) {
	path, done, err := controlPath(h.dir)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.DialTimeout("unix", path, controlPatience)
}

// ask asks the mount for one thing. fault takes what verify finds; result is decoded from what
// comes last.
func (h *heldStore) ask(ctx context.Context, q request, fault func(string), result any) error {
	conn, err := h.dial()
	if err != nil {
		return fmt.Errorf("the mount that has the store %s: %w", h.place, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r := bufio.NewReader(conn)
	pid, err := h.request(conn, r, q)
	for err == nil {
		var line reply
		if err = next(conn, r, controlLine, &line); err != nil {
			break
		}
		switch {
		case line.Fault != "" && fault != nil:
			fault(line.Fault)
		case line.Total > 0:
			store.Progress(ctx, line.Read, line.Total)
		case line.Done:
			return line.end(result)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return h.lost(pid, err)
}

// end decodes the last line: also what failed may have done something before.
func (r *reply) end(result any) error {
	var err error
	if result != nil && len(r.Result) > 0 {
		err = json.Unmarshal(r.Result, result)
	}
	if r.Error != nil {
		return r.Error
	}
	return err
}

// request answers the greeting.
func (h *heldStore) request(conn net.Conn, r *bufio.Reader, q request) (pid int, err error) {
	var g greeting
	if err := next(conn, r, requestLine, &g); err != nil {
		return 0, err
	}
	switch {
	case g.Protocol != controlProtocol:
		return g.PID, &wireError{Text: fmt.Sprintf("process %d, which has the store %s, speaks version %d of the protocol, this ckptfs %d: use the same for both",
			g.PID, h.place, g.Protocol, controlProtocol)}
	case !g.Sealed && h.key != nil:
		return g.PID, &store.KeyError{Dir: h.place, Given: true}
	case g.Sealed && h.key == nil:
		return g.PID, &store.KeyError{Dir: h.place, Sealed: true}
	case g.Sealed:
		proof := h.key.Prove(g.Challenge)
		q.Proof = proof[:]
	}
	q.Protocol, q.PID = controlProtocol, os.Getpid()
	return g.PID, json.NewEncoder(conn).Encode(q)
}

// next reads the next line; it waits no longer than a mount that is at work stays silent.
func next(conn net.Conn, r *bufio.Reader, limit int, v any) error {
	if err := conn.SetReadDeadline(time.Now().Add(controlPatience)); err != nil {
		return err
	}
	return readLine(r, limit, v)
}

// lost says what became of a mount that does not answer.
func (h *heldStore) lost(pid int, err error) error {
	var key *store.KeyError
	var told *wireError
	switch {
	case errors.As(err, &key), errors.As(err, &told):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("process %d, which has the store %s, does not answer (is it stopped? see ps); end its mount with ckptfs umount and try again: %w",
			pid, h.place, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("the mount (pid %d) that has the store %s has ended meanwhile; try again", pid, h.place)
	}
	return fmt.Errorf("ask the mount (pid %d) that has the store %s, %s: %w", pid, h.place, filepath.Join(h.dir, controlName), err)
}

func (h *heldStore) List() (list []store.Image, err error) {
	err = h.ask(h.ctx, request{Op: "list"}, nil, &list)
	return list, err
}

func (h *heldStore) Stats() (st store.Stats, err error) {
	err = h.ask(h.ctx, request{Op: "stats"}, nil, &st)
	return st, err
}

func (h *heldStore) Verify(ctx context.Context, readData bool, report func(string)) error {
	return h.ask(ctx, request{Op: "verify", ReadData: readData}, report, nil)
}

func (h *heldStore) Prune(ctx context.Context, p store.Policy) (rep store.PruneReport, err error) {
	q := request{Op: "prune"}
	q.Policy.KeepLast, q.Policy.KeepWithin, q.Policy.Expire = p.KeepLast, p.KeepWithin, p.Expire
	q.Policy.MaxSize, q.Policy.AllHosts = p.MaxSize, p.AllHosts
	err = h.ask(ctx, q, nil, &rep)
	return rep, err
}

func (h *heldStore) GC(ctx context.Context) (rep store.GCReport, err error) {
	err = h.ask(ctx, request{Op: "gc"}, nil, &rep)
	return rep, err
}

func (h *heldStore) Settle(ctx context.Context, workers int) (rep store.GCReport, err error) {
	err = h.ask(ctx, request{Op: "settle", Workers: workers}, nil, &rep)
	return rep, err
}

// Close does nothing: the store is the mount's.
func (h *heldStore) Close() error { return nil }
