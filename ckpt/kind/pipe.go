package kind

import (
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// pipe is one open file description of a pipe(2). Both ends may be open many times, also for
// reading and writing at once through /proc/PID/fd. All of them make one pipe again:
//
//  1. The first that is opened makes it, with its capacity and content.
//  2. Each gets its own open file description of it: the two of pipe2(2) for those that came
//     from there, and new ones through /proc/self/fd.
//  3. When all are open, both ends that we hold are closed. So a pipe whose other end was
//     closed everywhere is broken, or at its end, exactly as before.
//
// An end whose only counterpart is outside the tree reads what was in the pipe and then end
// of file, or writes to NAME.out.
type pipe struct{}

func (pipe) Name() string { return "pipe" }

func (pipe) Match(f *Found) bool {
	return f.Stat.Mode&unix.S_IFMT == unix.S_IFIFO && f.Flags&unix.O_PATH == 0 && strings.HasPrefix(f.Link, "pipe:[")
}

func (pipe) Check(f *Found, s *Scene) []image.Finding {
	all := append(held(f, s), contentFindings(f, s)...)
	ends := endsOf(f, s)
	const remedy = "checkpoint a tree that holds both ends, or send the data to a file"
	if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_WRONLY); pid != 0 && readable(f.Flags) {
		all = append(all, f.lockedAway(fmt.Sprintf("pid %d outside the tree has it open too", pid))...)
		what := fmt.Sprintf("pid %d outside the tree writes to this pipe too, and will not reach the restored one", pid)
		if !ends.write {
			what = fmt.Sprintf("only pid %d outside the tree writes to this pipe: the restored one reads what is in it now, then end of file", pid)
		}
		all = append(all, f.lose(what, remedy))
	}
	if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_RDONLY); pid != 0 && writable(f.Flags) {
		all = append(all, f.lockedAway(fmt.Sprintf("pid %d outside the tree has it open too", pid))...)
		what := fmt.Sprintf("pid %d outside the tree reads from this pipe too, and will get nothing from the restored one", pid)
		if !ends.read {
			what = fmt.Sprintf("only pid %d outside the tree reads from this pipe: what the restored tree writes goes to NAME.out", pid)
		}
		all = append(all, f.lose(what, remedy))
	}
	return all
}

func (pipe) Dump(f *Found, s *Scene, rec *image.File) error {
	r, err := describePipe(f, s, rec)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	return encodeRec(rec, r)
}

func (pipe) Open(rec *image.File, e *Env) (int, error) {
	var r pipeRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	ends, err := recordedEnds(rec.Kind, &r, e)
	if err != nil {
		return -1, err
	}
	if r.Outside && writable(rec.Flags) && !ends.read {
		return outFile(e)
	}
	p, err := shared(e, inodeKey("pipe", r.Dev, r.Ino), func() (*pipePair, error) { return makePipe(&r, ends, e) })
	fd := -1
	if err == nil {
		fd, err = p.end(rec.Flags)
	}
	if err == nil {
		fd, err = finished(fd, rec.Flags, 0, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", rec.Path, err)
	}
	return fd, nil
}

// pipePair is a new pipe while its records are being opened.
type pipePair struct {
	fd    [2]int  // read and write end
	given [2]bool // whether a record has got this very description already
	rec   *pipeRec
	warn  func(format string, args ...any)
}

// Close gives the pipe its owner and mode, which decide who can open it anew through
// /proc/PID/fd, and closes our ends. We had to do that until now; and what closes the files has
// our own credentials, not those of the user.
func (p *pipePair) Close() error {
	if err := giveTo(p.fd[1], p.rec.UID, p.rec.GID); err != nil {
		p.warn("pipe:[%d]: %v", p.rec.Ino, err)
	}
	err := unix.Fchmod(p.fd[1], p.rec.Mode&07777)
	for _, fd := range p.fd {
		if err2 := unix.Close(fd); err == nil {
			err = err2
		}
	}
	return err
}

// makePipe makes the pipe of r with its capacity, content and owner.
func makePipe(r *pipeRec, ends pipeEnds, e *Env) (*pipePair, error) {
	p := pipePair{rec: r, warn: e.Warn}
	if err := unix.Pipe2(p.fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe2: %w", err)
	}
	if err := fillPipe(p.fd[1], r, ends, e); err != nil {
		unix.Close(p.fd[0]) // never used
		unix.Close(p.fd[1])
		return nil, err
	}
	return &p, nil
}

// end returns a descriptor with the access mode of flags. pipe2(2) does not set O_LARGEFILE and
// open(2) does, which tells an original end from one opened through /proc.
func (p *pipePair) end(flags uint32) (int, error) {
	side := 0
	if writable(flags) {
		side = 1
	}
	if flags&unix.O_ACCMODE == unix.O_RDWR || flags&largeFile != 0 || p.given[side] {
		return reopen(p.fd[side], openFlags(flags&^unix.O_DIRECT)) // F_SETFL can set that, open cannot
	}
	p.given[side] = true
	return dup(p.fd[side])
}
