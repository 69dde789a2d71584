package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store"
	"golang.org/x/sys/unix"
)

// FuzzRequest: what a mount reads from a command.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"Protocol":1,"Op":"list"}`, `{"Protocol":1,"PID":7,"Op":"verify","ReadData":true,"Proof":"AAAA"}`,
		`{"Protocol":1,"Op":"prune","Policy":{"KeepLast":3,"KeepWithin":1000,"MaxSize":5}}`,
		`{"Protocol":2,"Op":"list"}`, `{"Protocol":1,"Op":"format"}`, `{"Protocol":1,"Op":"prune","Policy":{"KeepLast":-1}}`,
		`{`, ``, `[]`, `{"Protocol":1,"Op":"gc"}` + strings.Repeat(" ", requestLine),
	} {
		f.Add(s + "\n")
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := parseRequest(bufio.NewReader(strings.NewReader(s)))
		if err != nil {
			return
		}
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRequest(bufio.NewReader(strings.NewReader(string(b) + "\n")))
		if err != nil || again.Op != q.Op || again.Policy != q.Policy {
			t.Fatalf("%s became %+v, %v", s, again, err)
		}
	})
}

func TestRequestRefused(t *testing.T) {
	for s, want := range map[string]string{
		`{"Protocol":2,"Op":"list"}`:                                  "version 1 of the protocol, the command 2",
		`{"Protocol":1,"Op":"format"}`:                                `cannot do "format"`,
		`{"Protocol":1,"Op":"prune","Policy":{"MaxSize":-1}}`:         "is negative",
		`{"Protocol":1,"Op":"gc"}` + strings.Repeat(" ", requestLine): "without end",
		`garbage`: "no line of the protocol",
	} {
		_, err := parseRequest(bufio.NewReader(strings.NewReader(s + "\n")))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", s, err, want)
		}
	}
	if _, err := parseRequest(bufio.NewReader(strings.NewReader(`{"Protocol":1`))); !errors.Is(err, fs.ErrClosed) && err == nil {
		t.Error("half a line was taken")
	}
}

// TestWire: an error means the same on the other side, also for the exit code.
func TestWire(t *testing.T) {
	for _, err := range []error{
		&store.RecordError{Path: "x", Err: unix.EIO}, unix.ENOSPC, &store.BucketError{Err: errors.New("no answer")}, &fs.PathError{Op: "open", Path: "x", Err: unix.EACCES}, errors.New("else"),
	} {
		b, jerr := json.Marshal(wire(err))
		if jerr != nil {
			t.Fatal(jerr)
		}
		got := new(wireError)
		if jerr := json.Unmarshal(b, got); jerr != nil {
			t.Fatal(jerr)
		}
		if got.Error() != err.Error() || exitCode(got) != exitCode(err) || errors.Is(got, store.ErrDamaged) != errors.Is(err, store.ErrDamaged) {
			t.Errorf("%v became %v: exit code %d, was %d", err, got, exitCode(got), exitCode(err))
		}
	}
}

// fakeMount answers every connection with f.
func fakeMount(t *testing.T, f func(conn net.Conn)) *heldStore {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-name", 15)) // longer than a socket's path may be
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path, done, err := controlPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f(conn)
		}
	}()
	return &heldStore{ctx: t.Context(), dir: dir, place: dir}
}

// TestStrangeMounts: what a command says of a mount that is of another version, ends or hangs.
func TestStrangeMounts(t *testing.T) {
	h := fakeMount(t, func(conn net.Conn) {
		defer conn.Close()
		_ = json.NewEncoder(conn).Encode(greeting{Protocol: 7, PID: 4711})
	})
	if _, err := h.List(); err == nil || !strings.Contains(err.Error(), "process 4711") || !strings.Contains(err.Error(), "version 7") {
		t.Errorf("a newer mount: %v", err)
	}
	h = fakeMount(t, func(conn net.Conn) {
		_ = json.NewEncoder(conn).Encode(greeting{Protocol: controlProtocol, PID: 4711})
		conn.Close()
	})
	if _, err := h.Stats(); err == nil || !strings.Contains(err.Error(), "4711") || !strings.Contains(err.Error(), "has ended meanwhile") {
		t.Errorf("a mount that ends: %v", err)
	}
	h = fakeMount(t, func(conn net.Conn) { // it never answers
		_ = json.NewEncoder(conn).Encode(greeting{Protocol: controlProtocol, PID: 4711})
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := h.Verify(ctx, true, func(string) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	if err := h.lost(4711, os.ErrDeadlineExceeded); !strings.Contains(err.Error(), "process 4711") || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("a mount that hangs: %v", err)
	}
}
