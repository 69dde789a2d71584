package lazymem

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen answers on a socket with a status, or not at all if that is nil.
func listen(t *testing.T, dir string, pid int, s *Status) {
	t.Helper()
	l, err := net.Listen("unix", SocketPath(dir, pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if q, _ := bufio.NewReader(conn).ReadString('\n'); s != nil && q == AskStatus+"\n" {
				_ = json.NewEncoder(conn).Encode(s) // the asker says if it did not come
				conn.Close()
			}
		}
	}()
}

func TestList(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	if all, err := list(ctx, filepath.Join(dir, "none")); err != nil || len(all) > 0 {
		t.Errorf("without a folder: %v, %v", all, err)
	}
	listen(t, dir, 12, &Status{Server: 12, PIDs: []int{5}, Missing: 1})
	listen(t, dir, 3, &Status{Server: 3, PIDs: []int{7, 8}, Missing: 1 << 20, Total: 3 << 20, Name: "job"})
	listen(t, dir, 4, &Status{Server: 4, Done: true})
	l, err := net.Listen("unix", SocketPath(dir, 99)) // as after a SIGKILL
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	all, err := list(ctx, dir)
	if err != nil || len(all) != 2 || all[0].Server != 3 || all[1].Server != 12 {
		t.Fatalf("%+v, %v", all, err)
	}
	if s := all[0].String(); s != "pids 7, 8 (job), 1.0 of 3.0 MiB to come" {
		t.Errorf("it reads: %s", s)
	}
	if _, err := os.Stat(SocketPath(dir, 99)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of a server that was killed: %v", err)
	}
	listen(t, dir, 50, nil)
	begun := time.Now()
	all, err = list(ctx, dir)
	if err == nil || !strings.Contains(err.Error(), "page server 50 does not answer") || len(all) != 2 || time.Since(begun) > 5*askTime {
		t.Errorf("with one that does not answer: %+v, %v", all, err)
	}
}
