// Package lazymem finds the page servers of processes that were restored lazily: they run while
// parts of their memory are still in the image (see package restore/lazy, which has the server).
//
// Each server listens on a unix socket in a folder that only root can look into, and answers one
// question for each connection:
//
//	who asks      "status\n", "wait\n"
//	the server    its Status, a line of JSON
//
// and hangs up. Who waits is answered when all memory has come, and is a reason for the server to
// hurry.
package lazymem

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Dir is where the sockets and logs of the servers are.
const Dir = "/run/ckptfs/lazy"

// The questions.
const (
	AskStatus = "status"
	AskWait   = "wait"
)

// Status is what a server tells of itself.
type Status struct {
	Server  int    `json:"server"`  // its pid
	Owner   int    `json:"owner"`   // pid of the mount that it belongs to; 0: it is on its own
	Name    string `json:"name"`    // of what is restored
	Log     string `json:"log"`     // its log file
	PIDs    []int  `json:"pids"`    // the processes it serves
	Missing int64  `json:"missing"` // bytes that have not come yet
	Total   int64  `json:"total"`   // bytes that were missing at first
	Failed  int64  `json:"failed"`  // bytes that could not be had
	Done    bool   `json:"done"`    // nothing is missing
}

// String says who waits for how much.
func (s *Status) String() string {
	pids := make([]string, len(s.PIDs))
	for i, pid := range s.PIDs {
		pids[i] = fmt.Sprint(pid)
	}
	word := "pid"
	if len(pids) > 1 {
		word = "pids"
	}
	return fmt.Sprintf("%s %s (%s), %.1f of %.1f MiB to come", word, strings.Join(pids, ", "), s.Name, mib(s.Missing), mib(s.Total))
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// askTime is how long a server may take to answer at once.
const askTime = 2 * time.Second

// SocketPath is the path of a server's socket.
func SocketPath(dir string, pid int) string { return filepath.Join(dir, fmt.Sprintf("%d.sock", pid)) }

// List asks every server that there is. The error is about those that did not answer.
func List(ctx context.Context) ([]Status, error) { return list(ctx, Dir) }

func list(ctx context.Context, dir string) ([]Status, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return nil, nil // who is not root cannot have any
	}
	if err != nil {
		return nil, fmt.Errorf("look for page servers: %w", err)
	}
	var all []Status
	var mute []error
	for _, n := range names {
		if filepath.Ext(n.Name()) != ".sock" {
			continue
		}
		s, err := ask(ctx, filepath.Join(dir, n.Name()), AskStatus, askTime)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED): // it was killed; nobody listens there any more
			_ = os.Remove(filepath.Join(dir, n.Name())) // it does no harm
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET): // it has just ended
		case err != nil:
			mute = append(mute, fmt.Errorf("the page server %s does not answer: %w", strings.TrimSuffix(n.Name(), ".sock"), err))
		case !s.Done:
			all = append(all, *s)
		}
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Server, b.Server) })
	return all, errors.Join(mute...)
}

// Serving lists the servers of any of these processes. One that does not answer is left out: that it has one of
// them shows the process's memory.
func Serving(ctx context.Context, pids []int) []Status {
	all, _ := List(ctx)
	return slices.DeleteFunc(all, func(s Status) bool {
		return !slices.ContainsFunc(s.PIDs, func(pid int) bool { return slices.Contains(pids, pid) })
	})
}

// Wait waits until a server has brought everything, or has ended.
func Wait(ctx context.Context, s *Status) (*Status, error) {
	last, err := ask(ctx, SocketPath(Dir, s.Server), AskWait, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return s, nil
	}
	return last, err
}

// ask puts a question. limit bounds the answer; 0: ctx alone does.
func ask(ctx context.Context, path, question string, limit time.Duration) (*Status, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	if _, err := io.WriteString(conn, question+"\n"); err != nil {
		return nil, whyNot(ctx, err)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 1<<20)).ReadBytes('\n')
	if err != nil {
		return nil, whyNot(ctx, err)
	}
	s := new(Status)
	return s, json.Unmarshal(line, s)
}

// whyNot is the reason of ctx if that has ended a conversation.
func whyNot(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
