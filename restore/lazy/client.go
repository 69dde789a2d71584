package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/lazymem"
	"golang.org/x/sys/unix"
)

// Source is where the pages of a lazy restore come from, and who is told about it.
type Source struct {
	Name  string      // of what is restored, for people
	Image io.ReaderAt // an *os.File is handed to the page server; of anything else we read for it as long as it lives
	Size  int64
	Owner int   // pid of the mount that it belongs to; 0: none
	Rate  int64 // how many bytes a second come in the background at most, unless somebody waits for the end; 0: no bound

	Command []string       // of this program, that runs Serve with the descriptor 3
	Log     func(string)   // takes what went wrong; may be nil
	Report  func(Progress) // takes how far it is, as long as this process lives; may be nil
	End     func(error)    // is called when the server has ended and Image is needed no more; may be nil
}

// Client is the restore's end.
type Client struct {
	PID     int // of the server
	src     *Source
	link    *link
	answers chan reply
	server  *os.Process
	ended   chan struct{} // closed when the server has ended
	mu      sync.Mutex    // guards last
	last    Progress
}

// patience bounds how long the server may take for an answer.
const patience = 30 * time.Second

// Start starts a page server for an image.
func Start(src *Source) (*Client, error) {
	if err := Probe(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(lazymem.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder for the sockets of page servers: %w", err)
	}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	for _, fd := range p {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*maxPacket) // a long message fails if it does not fit
	}
	theirs := os.NewFile(uintptr(p[1]), "link")
	cmd := exec.Command(src.Command[0], src.Command[1:]...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = "/", []string{"GOGC=50"}, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close() // the child has it
	c := &Client{src: src, link: &link{fd: p[0]}, answers: make(chan reply, 1), ended: make(chan struct{})}
	if err != nil {
		_ = unix.Close(p[0]) // nothing was sent
		return nil, fmt.Errorf("start a page server: %w", err)
	}
	c.PID, c.server = cmd.Process.Pid, cmd.Process
	go c.hear(cmd)
	if err := c.open(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// open hands the image over.
func (c *Client) open() error {
	q := request{Op: opOpen, Name: c.src.Name, Owner: c.src.Owner, Rate: c.src.Rate, Size: c.src.Size}
	if f, ok := c.src.Image.(*os.File); ok {
		return c.link.send(q, int(f.Fd()))
	}
	q.Fed = true
	var fds []int
	for range feeds {
		ours, theirs, err := feedPair()
		if err != nil {
			return err
		}
		defer theirs.Close()
		fds = append(fds, int(theirs.Fd()))
		go func() {
			defer ours.Close()
			feed(ours, c.src.Image)
		}()
	}
	return c.link.send(q, fds...)
}

// hear takes what the server says until it ends.
func (c *Client) hear(cmd *exec.Cmd) {
	var err error
	for err == nil {
		var r reply
		if _, err = c.link.receive(&r); err != nil {
			break
		}
		switch {
		case r.Progress != nil:
			c.mu.Lock()
			c.last = *r.Progress
			c.mu.Unlock()
			if c.src.Report != nil {
				c.src.Report(*r.Progress)
			}
		case r.Log != "":
			if c.src.Log != nil {
				c.src.Log(r.Log)
			}
		default:
			c.answers <- r
		}
	}
	close(c.answers)
	c.link.close()
	werr := cmd.Wait()
	close(c.ended)
	c.mu.Lock()
	done := c.last.Done
	c.mu.Unlock()
	if c.src.End == nil {
		return
	}
	if done {
		werr = nil
	} else if werr == nil {
		werr = errors.New("the page server has ended early")
	}
	c.src.End(werr)
}

// answer waits for the answer to a request.
func (c *Client) answer(ctx context.Context) error {
	select {
	case r, ok := <-c.answers:
		switch {
		case !ok:
			return errors.New("the page server has ended")
		case !r.OK:
			return fmt.Errorf("the page server: %s", r.Error)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return fmt.Errorf("the page server, pid %d, does not answer (%s): %w", c.PID, doing(c.PID), unix.ETIMEDOUT)
	}
}

// doing tells what the threads of a process that does not answer wait for in the kernel.
func doing(pid int) string {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid)) // the pattern is right
	var all []string
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil {
			all = append(all, string(b))
		}
	}
	return "its threads are in: " + strings.Join(all, " ")
}

// Opened waits until the server has the image open. Nothing else may be asked before.
func (c *Client) Opened(ctx context.Context) error { return c.answer(ctx) }

// Add hands an address space over: the missing pages of some mappings of an address space of the
// image, both counted from 0. The descriptors stay the caller's.
func (c *Client) Add(ctx context.Context, pid, mm int, vmas []int, uffd, pidfd int) error {
	if err := c.link.send(request{Op: opSpace, PID: pid, MM: mm, VMAs: vmas}, uffd, pidfd); err != nil {
		return fmt.Errorf("hand pid %d to the page server: %w", pid, err)
	}
	return c.answer(ctx)
}

// Go tells the server that the processes run, so that it stays when we go. From now on it brings all that
// is missing.
func (c *Client) Go(ctx context.Context) error {
	if err := c.link.send(request{Op: opGo}); err != nil {
		return fmt.Errorf("let the page server go on alone: %w", err)
	}
	return c.answer(ctx)
}

// endTime is how long Close waits.
const endTime = 5 * time.Second

// HangUp ends a server that was not told to go on.
func (c *Client) HangUp() { c.link.hangUp() }

// Close is HangUp, and waits for the end of the server.
func (c *Client) Close() {
	c.HangUp()
	select {
	case <-c.ended:
	case <-time.After(endTime):
		_ = c.server.Kill() // it hangs, and its guard ends what it serves, which must not run in any case
	}
}
