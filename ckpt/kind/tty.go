package kind

import (
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// terminal is the slave side of a pseudoterminal, a console or a serial line. If its master is in the tree it comes
// back with that, see ptyKind; one that was hung up is hung up again. Otherwise it is something
// whose other end is a person outside the tree. If it is still there at the restore and
// belongs to the same user it is opened again, else input reads end of file and
// output goes to NAME.out. Either way it is on the list of losses, since what was typed and not
// yet read, and the settings of the terminal, stay with the terminal.
type terminal struct{}

type terminalRec struct {
	identity
	UID  uint32 `cbor:"8,keyasint"`
	Gone bool   `cbor:"9,keyasint,omitempty"` // hung up at the checkpoint: whatever has its path since is another terminal

	PTY  image.ObjRef `cbor:"10,keyasint,omitempty"` // its master, if the tree has that
	Hung bool         `cbor:"11,keyasint,omitempty"` // hung up: input reads end of file, output fails with EIO
}

func (terminal) Name() string { return "tty" }

func (terminal) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFCHR || f.Flags&unix.O_PATH != 0 || !strings.HasPrefix(f.Link, "/") {
		return false
	}
	return ttyDevice(f.Stat.Rdev) && f.Stat.Rdev != devPTMX
}

// ttyDevice tells by its number whether a character device is a terminal, as in the kernel's
// list of devices. Asking the terminal itself would fail when it was hung up.
func ttyDevice(rdev uint64) bool {
	switch major := unix.Major(rdev); {
	case major == 4, major == 5, 136 <= major && major <= 143: // consoles and serial lines, /dev/tty and /dev/console, Unix98 ptys
		return true
	case 128 <= major && major <= 135: // old-style masters
		return true
	case major == 3, major == 204, major == 188, major == 166, major == 229: // BSD ptys, other serial lines, USB, hvc
		return true
	}
	return false
}

// ptyMaster tells whether f is an old master that has a device number of its own; see ptyKind for those of /dev/ptmx.
func ptyMaster(f *Found) bool {
	major := unix.Major(f.Stat.Rdev)
	return 128 <= major && major <= 135
}

func (terminal) Check(f *Found, s *Scene) []image.Finding {
	all := append(held(f, s), f.lockedAway("it is a terminal, which may be gone or another one then")...)
	if ptyMaster(f) {
		return append(all, f.refuse("it is the master side of a pseudoterminal, whose settings and unread text are not kept",
			"checkpoint the processes inside the terminal and not the program that shows it (tmux, screen, script, sshd)"))
	}
	if s.masterOf(f) != nil {
		all := append(held(f, s), plainDiscipline(f)...)
		if f.Flags&unix.O_CLOEXEC != 0 {
			all = append(all, f.lose("it was opened by TIOCGPTPEER with O_CLOEXEC, which hides whether a descriptor of it is closed by exec: 0, 1 and 2 are taken not to be, others to be",
				"none is needed, unless the program execs with such a descriptor above 2"))
		}
		return all
	}
	if hungUp(f) {
		return held(f, s)
	}
	return append(all, f.lose("it is a terminal: reattached if it still exists then and belongs to the same user, else input reads end of file and output goes to NAME.out",
		"start the program with its input from a file and its output to a file"))
}

func (terminal) Dump(f *Found, s *Scene, rec *image.File) error {
	path, st := realTerminal(f, s)
	r := terminalRec{identity: identify(st), UID: st.Uid, Gone: st.Nlink == 0}
	r.Size, r.MTime = 0, 0 // they change with every key
	if m := s.masterOf(f); m != nil {
		r.PTY = m.Ref
	} else {
		r.Hung = hungUp(f)
	}
	rec.Path = path
	return encodeRec(rec, &r)
}

// realTerminal returns the path of f, and for /dev/tty, which is another terminal for each
// session, that of the terminal it stands for.
func realTerminal(f *Found, s *Scene) (string, *unix.Stat_t) {
	if f.Stat.Rdev != devTTY {
		return strings.TrimSuffix(f.Link, deletedMark), &f.Stat
	}
	dev, err := unix.IoctlGetUint32(f.FD, unix.TIOCGDEV)
	if err != nil {
		return f.Link, &f.Stat // hung up: nothing to attach to
	}
	rdev := uint64(dev) // the kernel encodes it as st_rdev does for such numbers
	path := fmt.Sprintf("/dev/pts/%d", unix.Minor(rdev))
	var st unix.Stat_t
	if err := unix.Stat(under(s.Root, path), &st); err != nil || st.Rdev != rdev {
		return f.Link, &f.Stat
	}
	return path, &st
}

func (terminal) Open(rec *image.File, e *Env) (int, error) {
	var r terminalRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	if r.PTY != 0 || r.Hung {
		return r.openOwn(rec, e)
	}
	if fd, ok := r.reattach(rec); ok {
		e.Warn("terminal %s still exists and is used again", rec.Path)
		return fd, nil
	}
	e.Warn("terminal %s is gone or belongs to someone else: input reads end of file, output goes to NAME.out", rec.Path)
	if !writable(rec.Flags) {
		return endOfFile()
	}
	return outFile(e)
}

// reattach opens the terminal again if it is the same. It never waits for a line to come up,
// and never makes it anybody's controlling terminal.
func (r *terminalRec) reattach(rec *image.File) (int, bool) {
	var st unix.Stat_t
	if err := unix.Stat(rec.Path, &st); err != nil || r.Gone || !r.same(&st) || r.Rdev == devTTY {
		return -1, false
	}
	fd, now, err := openPath(rec, &r.identity)
	if err != nil {
		return -1, false // hung up, or not ours any more
	}
	if !r.same(now) {
		unix.Close(fd) // never used
		return -1, false
	}
	fd, err = finished(fd, rec.Flags, 0, 0)
	return fd, err == nil
}

func (r *terminalRec) same(now *unix.Stat_t) bool {
	return now.Mode&unix.S_IFMT == unix.S_IFCHR && now.Rdev == r.Rdev && now.Uid == r.UID
}
