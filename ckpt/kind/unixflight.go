package kind

import (
	"fmt"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// Files that are under way in the queue of a unix socket (SCM_RIGHTS) may be open nowhere else. They
// are files of the image like all others, and no table has them.

// InFlight returns descriptors of ours of the files that wait in the queue of f, if it is a unix
// socket. The processes of the tree must stand still.
func (s *Scene) InFlight(f *Found) ([]int, error) {
	if !(unixSock{}).Match(f) || f.Info.SCMFDs == 0 {
		return nil, nil
	}
	listens, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens != 0 { // then they are in those that it has yet to accept, see waitingFindings
		return nil, err
	}
	typ, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("SO_TYPE: %w", err)
	}
	ready, err := f.polled(unix.POLLIN | unix.POLLPRI)
	if err != nil {
		return nil, fmt.Errorf("poll: %w", err)
	}
	_, msgs, err := s.peekQueue(f.FD, uint8(typ), ready)
	var fds []int
	for i := range msgs {
		fds = append(fds, msgs[i].fds...)
	}
	return fds, err
}

// flying reports whether any file may be under way in the tree.
func (s *Scene) flying() bool {
	return slices.ContainsFunc(s.Files, func(f *Found) bool { return (unixSock{}).Match(f) && f.Info.SCMFDs > 0 })
}

// sameFile reports whether two descriptors of ours are of one open file description.
func sameFile(a, b int) (bool, error) {
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, 0, uintptr(a), uintptr(b), 0)
	if errno != 0 {
		return false, fmt.Errorf("kcmp: %w", errno)
	}
	return r == 0, nil
}

// refOf finds the file of the tree that a descriptor of ours is of.
func (s *Scene) refOf(fd int) (image.ObjRef, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("fstat: %w", err)
	}
	for _, g := range s.Files {
		if g.Stat.Dev != st.Dev || g.Stat.Ino != st.Ino {
			continue
		}
		if same, err := sameFile(fd, g.FD); err != nil || same {
			return g.Ref, err
		}
	}
	return 0, fmt.Errorf("a file that is under way in it was not seen before")
}

// carried refuses what only a process that has a file open could give back.
func (f *Found) carried() []image.Finding {
	const remedy = "try again when the program has received it"
	k := Find(f)
	if f.Carrier == nil || k == nil {
		return nil
	}
	_, finishes := k.(Finisher)
	_, starts := k.(Starter)
	switch {
	case finishes || starts || (terminal{}).Match(f):
		return []image.Finding{f.refuse("it is under way in a message and no process has it open, which is not kept of files of this kind", remedy)}
	case len(f.Locks) > 0:
		return []image.Finding{f.refuse("it is under way in a message, no process has it open, and it holds a lock", remedy)}
	case f.Owner != (image.FOwner{}):
		return []image.Finding{f.refuse("it is under way in a message, no process has it open, and it has an owner for signals", remedy)}
	}
	return nil
}

// Check lists what of a file cannot be kept.
func Check(f *Found, s *Scene) []image.Finding {
	k := Find(f)
	if k == nil {
		return []image.Finding{Unsupported(f)}
	}
	return append(f.carried(), k.Check(f, s)...)
}

// Carried lists the files that are under way in the file of a record.
func Carried(rec *image.File) ([]image.ObjRef, error) {
	if rec.Kind != (unixSock{}).Name() {
		return nil, nil
	}
	var r unixRec
	if err := decodeRec(rec, &r); err != nil {
		return nil, err
	}
	var all []image.ObjRef
	for i := range r.Msgs {
		all = append(all, r.Msgs[i].Files...)
	}
	return all, nil
}
