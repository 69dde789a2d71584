package kind

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// ptyKind is the master of a pseudoterminal, see pty(7): what tmux, screen and script have of each
// terminal they show. Everything about the terminal stands in the record of the master, of which there is
// exactly one description; its slaves are of kind terminal and only name it.
type ptyKind struct{}

// ptyState says who has had the slave open.
type ptyState uint8

// The states of a slave. The numbers are part of the format.
const (
	ptyFresh  ptyState = 0 // nobody yet: the master waits for the first
	ptyOpen   ptyState = 1
	ptyClosed ptyState = 2 // all have closed it: the master reads EIO
)

type ptyRec struct {
	Index      uint32    `cbor:"1,keyasint"`
	Dev        uint64    `cbor:"2,keyasint"` // of devpts, to tell instances apart
	Termios    []byte    `cbor:"3,keyasint"` // struct termios2
	Winsize    [4]uint16 `cbor:"4,keyasint"` // struct winsize
	Locked     bool      `cbor:"5,keyasint,omitempty"`
	Packet     bool      `cbor:"6,keyasint,omitempty"` // TIOCPKT
	Excl       bool      `cbor:"7,keyasint,omitempty"` // TIOCEXCL on the master
	SlaveExcl  bool      `cbor:"8,keyasint,omitempty"`
	State      ptyState  `cbor:"9,keyasint"`
	Mode       uint32    `cbor:"10,keyasint"` // of the slave's device file
	UID        uint32    `cbor:"11,keyasint"`
	GID        uint32    `cbor:"12,keyasint"`
	LockedBits []byte    `cbor:"13,keyasint,omitempty"` // TIOCGLCKTRMIOS; nil: none
	Stopped    bool      `cbor:"14,keyasint,omitempty"` // TCOOFF
	Output     uint32    `cbor:"15,keyasint,omitempty"` // bytes of the blob that the master has not read
	Input      uint32    `cbor:"16,keyasint,omitempty"` // bytes behind them that no slave has read
	Lines      []uint32  `cbor:"17,keyasint,omitempty"` // lengths of the whole lines among them; what is left is being edited
}

const (
	sizeofTermios  = int(unsafe.Sizeof(unix.Termios{})) // struct termios2
	sizeofTermios1 = 36                                 // struct termios of the kernel, without the speeds
	tiocgptlck     = 0x80045439
	tiocgexcl      = 0x80045440
	tiocgpkt       = 0x80045438
)

func (ptyKind) Name() string { return "pty" }

func (ptyKind) Match(f *Found) bool {
	return f.Stat.Mode&unix.S_IFMT == unix.S_IFCHR && f.Flags&unix.O_PATH == 0 && f.Stat.Rdev == devPTMX
}

func (ptyKind) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	key, slave, err := masterKey(f)
	if err != nil {
		return append(all, f.refuse("it is the master of a pseudoterminal that cannot be identified: "+err.Error(), "mount its devpts where its /dev/ptmx is"))
	}
	all = append(all, plainDiscipline(f)...)
	if s.ptys()[key] != f {
		all = append(all, f.refuse(fmt.Sprintf("there is another master of terminal %d of the same devpts in the tree, or the devpts beside it is not its own", key.index), "mount its devpts where its /dev/ptmx is"))
	}
	if pid := s.masterOutside(f, key.index); pid != 0 {
		all = append(all, f.refuse(fmt.Sprintf("pid %d outside the tree has this master of a pseudoterminal, too", pid),
			"end that process, or checkpoint a tree that holds both"))
	}
	if pid := slaveOutside(slave, s); pid != 0 {
		all = append(all, f.lose(fmt.Sprintf("pid %d outside the tree has its slave %s open, and will not have the restored one", pid, slave),
			"end that process, or checkpoint a tree that holds both"))
	}
	if state, err := slaveState(f, s); err == nil && state == ptyFresh {
		all = append(all, f.lose("nobody has opened its slave yet, and what may have been written to it is not kept: that cannot be seen",
			"try again when a program has opened the slave"))
	}
	return append(all, controls(f, slave, s)...)
}

// controls tells of the session and the foreground process group outside the tree.
func controls(f *Found, slave string, s *Scene) (all []image.Finding) {
	if sid, err := unix.IoctlGetInt(f.FD, unix.TIOCGSID); err == nil && sid > 0 && !s.member(sid) {
		all = append(all, f.lose(fmt.Sprintf("its slave %s controls session %d, whose leader is not in the tree: the restored one controls none", slave, sid),
			"checkpoint a tree that holds the leader of the session"))
	}
	return all
}

// plainDiscipline refuses a terminal with another line discipline than N_TTY.
func plainDiscipline(f *Found) []image.Finding {
	if n, err := unix.IoctlGetInt(f.FD, unix.TIOCGETD); err == nil && n != 0 {
		return []image.Finding{f.refuse(fmt.Sprintf("it has line discipline %d (TIOCSETD, as pppd and slattach set it), of which only 0 (N_TTY) is kept", n),
			"end the program that drives the line")}
	}
	return nil
}

// slaveOutside returns a process outside the tree that has the slave with that path open, or 0.
func slaveOutside(slave string, s *Scene) int {
	var st unix.Stat_t
	if err := unix.Stat(slave, &st); err != nil {
		return 0
	}
	if pid := s.Outside(st.Dev, st.Ino, unix.O_RDONLY); pid != 0 {
		return pid
	}
	return s.Outside(st.Dev, st.Ino, unix.O_WRONLY)
}

// slaveOf returns a slave of a master in the tree, or nil.
func (s *Scene) slaveOf(master *Found) *Found {
	for _, f := range s.Files {
		if (terminal{}).Match(f) && s.masterOf(f) == master {
			return f
		}
	}
	return nil
}

// slaveState finds out who has had the slave open. What does not matter is whether it is somebody outside the tree:
// his slave is not in the image, so it is closed then.
func slaveState(f *Found, s *Scene) (ptyState, error) {
	ready, err := polled(f.FD, 0)
	if err != nil {
		return 0, fmt.Errorf("poll: %w", err)
	}
	if ready&unix.POLLHUP != 0 {
		return ptyClosed, nil
	}
	if s.slaveOf(f) != nil {
		return ptyOpen, nil
	}
	_, slave, err := masterKey(f)
	if err == nil && slaveOutside(slave, s) != 0 {
		return ptyClosed, nil
	}
	return ptyFresh, err
}

func (ptyKind) Dump(f *Found, s *Scene, rec *image.File) error {
	r, slave, err := describePTY(f, s)
	if err != nil {
		return err
	}
	if r.State != ptyFresh {
		q, err := readQueues(f, slave, r, s)
		if err != nil {
			return &image.RefusedError{Findings: []image.Finding{f.refuse(err.Error(), "try again when the programs at both ends have read what waits for them")}}
		}
		r.Output, r.Input, r.Lines = uint32(q.outLen), uint32(q.inLen), q.recorded()
		if q.outLen+q.inLen > 0 {
			rec.Blob = s.Blob(append(append([]byte(nil), q.out[:q.outLen]...), q.in[:q.inLen]...))
		}
	}
	return encodeRec(rec, r)
}

// describePTY makes the record, but for what waits to be read.
func describePTY(f *Found, s *Scene) (r *ptyRec, slave string, err error) {
	key, slave, err := masterKey(f)
	if err != nil {
		return nil, "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(slave, &st); err != nil {
		return nil, "", fmt.Errorf("its slave: %w", err)
	}
	r = &ptyRec{Index: key.index, Dev: key.dev, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	if r.State, err = slaveState(f, s); err != nil {
		return nil, "", err
	}
	r.Termios = make([]byte, sizeofTermios)
	locked := make([]byte, sizeofTermios1)
	for _, get := range [...]struct {
		nr uint
		to unsafe.Pointer
	}{{unix.TCGETS2, unsafe.Pointer(&r.Termios[0])}, {unix.TIOCGWINSZ, unsafe.Pointer(&r.Winsize[0])}, {unix.TIOCGLCKTRMIOS, unsafe.Pointer(&locked[0])}} {
		if err := ioctlPtr(f.FD, get.nr, get.to); err != nil {
			return nil, "", fmt.Errorf("ioctl %#x: %w", get.nr, err)
		}
	}
	for _, b := range locked {
		if b != 0 {
			r.LockedBits = locked
		}
	}
	flags := []struct {
		fd int
		nr uint
		to *bool
	}{{f.FD, tiocgptlck, &r.Locked}, {f.FD, tiocgpkt, &r.Packet}, {f.FD, tiocgexcl, &r.Excl}}
	if g := s.slaveOf(f); g != nil {
		flags = append(flags, struct {
			fd int
			nr uint
			to *bool
		}{g.FD, tiocgexcl, &r.SlaveExcl})
	}
	for _, x := range flags {
		n, err := unix.IoctlGetInt(x.fd, x.nr)
		if err != nil {
			return nil, "", fmt.Errorf("ioctl %#x: %w", x.nr, err)
		}
		*x.to = n != 0
	}
	return r, slave, nil
}

func ioctlPtr(fd int, nr uint, p unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(nr), uintptr(p))
	if errno != 0 {
		return errno
	}
	return nil
}

// openPeer opens the slave of a master (TIOCGPTPEER), which needs no path. With O_CLOEXEC the open file would
// show that flag for ever, in every descriptor of it (fdinfo), so it is set afterwards.
func openPeer(master, flags int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, uintptr(flags&^unix.O_CLOEXEC|unix.O_NOCTTY))
	if errno != 0 {
		return -1, os.NewSyscallError("TIOCGPTPEER", errno)
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}
