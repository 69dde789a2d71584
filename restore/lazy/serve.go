package lazy

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/lazymem"
	"golang.org/x/sys/unix"
)

// Serve is the page server: what the command that Start runs does. The descriptor is its end of the
// link. It returns when nothing is missing any more.
func Serve(linkFD int, rescue []string) (err error) {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE) // it ends when the work is done
	unix.CloseOnExec(linkFD)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0) // worth a try: with us the processes end
	log, err := openLog(LogPath(os.Getpid()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.close()) }()
	if err := unix.Dup3(int(log.f.Fd()), 2, 0); err != nil { // where a crash would be told
		return fmt.Errorf("log to %s: %w", log.path, err)
	}
	s := newServer(&link{fd: linkFD}, log)
	end, err := s.guard(append(rescue, log.path))
	if err != nil {
		s.link.tell(reply{Error: err.Error()})
		return err
	}
	defer end()
	switch err := s.takeOver(); {
	case errors.Is(err, errAlone):
		return nil // its processes end with it
	case err != nil:
		log.trouble(err.Error())
		return err
	}
	return s.untilDone()
}

// LogPath is where a server logs. What has ended well leaves no log.
func LogPath(pid int) string { return fmt.Sprintf("%s/%d.log", lazymem.Dir, pid) }

// guard keeps a guard until end is called.
func (s *server) guard(rescue []string) (end func(), err error) {
	g, err := newGuard(rescue)
	if err != nil {
		return nil, err
	}
	pid, err := g.start()
	if err != nil {
		return nil, err
	}
	var current, ending atomic.Int64
	current.Store(int64(pid))
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			waitGuard(int(current.Load()))
			if ending.Load() != 0 {
				return
			}
			s.logf("the guard of the page server, pid %d, has been killed; there is a new one", current.Load())
			pid, err := g.start()
			if err != nil {
				s.logf("%v; trying again", err)
				time.Sleep(time.Second)
				continue
			}
			current.Store(int64(pid))
		}
	}()
	return func() {
		ending.Store(1)
		_ = unix.Kill(int(current.Load()), unix.SIGKILL) // it may have been killed already
		<-over
	}, nil
}

// errAlone says that the restore has failed or was killed.
var errAlone = errors.New("the restore has ended")

// takeOver does what the restore asks for, until its processes run.
func (s *server) takeOver() error {
	for {
		var q request
		fds, err := s.link.receive(&q)
		if errors.Is(err, io.EOF) {
			return errAlone
		}
		if err != nil {
			return fmt.Errorf("hear what the restore wants: %w", err)
		}
		err = s.do(&q, fds)
		answer := reply{OK: err == nil}
		if err != nil {
			answer.Error = err.Error()
		}
		if q.Op == opGo && err == nil {
			s.begin()
			_ = s.link.send(answer) // who has been killed by now has let them go or not; both is seen to
			return nil
		}
		if err := s.link.send(answer); errors.Is(err, unix.EPIPE) {
			return errAlone
		} else if err != nil {
			return fmt.Errorf("answer the restore: %w", err)
		}
	}
}

func (s *server) do(q *request, fds []int) error {
	switch {
	case q.Op == opOpen && len(fds) > 0:
		return s.open(q, fds)
	case q.Op == opSpace && len(fds) == 2 && s.image != nil:
		runs, huge, err := s.spaceRuns(q.MM, q.VMAs)
		if err != nil {
			return err
		}
		sp := newSpace(s, q.PID, fds[1], fds[0], newMissing(runs), huge)
		s.add(sp)
		go sp.serve()
		return nil
	case q.Op == opGo:
		return s.listen()
	}
	return fmt.Errorf("the page server does not understand %q with %d descriptors", q.Op, len(fds))
}

// open opens the image.
func (s *server) open(q *request, fds []int) error {
	s.name, s.owner, s.rate = q.Name, q.Owner, q.Rate
	var src io.ReaderAt
	if q.Fed {
		var conns []io.ReadWriter
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			patience := unix.NsecToTimeval(int64(feedPatience))
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
				return fmt.Errorf("bound the wait for the image: %w", err)
			}
			conns = append(conns, os.NewFile(uintptr(fd), "feed"))
		}
		src = newFed(conns)
	} else {
		unix.CloseOnExec(fds[0])
		src = os.NewFile(uintptr(fds[0]), q.Name)
	}
	var err error
	s.image, err = image.OpenChecked(src, q.Size)
	return err
}

// listen lets others ask about us.
func (s *server) listen() error {
	path := lazymem.SocketPath(lazymem.Dir, os.Getpid())
	_ = os.Remove(path) // of an earlier process that had our pid
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen for questions about lazy processes: %w", err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.answer(conn)
		}
	}()
	return nil
}

// answer answers one question.
func (s *server) answer(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReaderSize(conn, 64).ReadString('\n')
	if err != nil {
		return
	}
	if line == lazymem.AskWait+"\n" {
		s.hurry.Store(true)
		select {
		case <-s.done:
		case <-hungUp(conn):
			return
		}
	}
	_ = json.NewEncoder(conn).Encode(s.status()) // who has gone wants to know no more
}

// hungUp tells when the other end is gone.
func hungUp(conn net.Conn) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1)) // nothing more is said
	}()
	return gone
}

// untilDone reports progress until nothing is missing.
func (s *server) untilDone() error {
	const often = 200 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.sweep()
			s.report()
			continue
		case <-s.done:
		}
		s.report()
		err := os.Remove(lazymem.SocketPath(lazymem.Dir, os.Getpid()))
		time.Sleep(answerTime) // who has just asked gets his answer
		return err
	}
}

// answerTime is how long those who wait have for hearing that it is over.
const answerTime = 20 * time.Millisecond

// sweep ends the spaces of processes that have ended.
func (s *server) sweep() {
	s.mu.Lock()
	all := append([]*space(nil), s.spaces...)
	s.mu.Unlock()
	for _, sp := range all {
		sp.mu.Lock()
		dead := !sp.over && gone(sp.fd)
		sp.mu.Unlock()
		if dead {
			sp.end()
		}
	}
}

func (s *server) report() {
	st := s.status()
	s.link.tell(reply{Progress: &Progress{Server: st.Server, PIDs: st.PIDs, Log: st.Log, Missing: st.Missing, Total: st.Total, Failed: st.Failed, Done: st.Done}})
}
