package kind

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// How the two ends of a pseudoterminal (pty(7)) are found. A master is opened by /dev/ptmx, whose inode all
// masters share; TIOCGPTN tells the number of its terminal, and where /dev/ptmx lies tells the
// instance of devpts, since each mount of devpts counts for itself (Documentation/filesystems/devpts.rst).

// ptyKey names a pseudoterminal: the device of its devpts, and its number there.
type ptyKey struct {
	dev   uint64
	index uint32
}

// devPTMX is /dev/ptmx, and devTTY is /dev/tty.
var (
	devPTMX = unix.Mkdev(5, 2)
	devTTY  = unix.Mkdev(5, 0)
)

const (
	// maxPTY is NR_UNIX98_PTY_MAX: as many numbers there are.
	maxPTY = 1 << 20
	// ptsMajor is UNIX98_PTY_SLAVE_MAJOR, the first of UNIX98_PTY_MAJOR_COUNT.
	ptsMajor, ptsMajors = 136, 8
)

// ptsIndex is the number of the slave with a device number.
func ptsIndex(rdev uint64) (uint32, bool) {
	major := unix.Major(rdev)
	if major < ptsMajor || major >= ptsMajor+ptsMajors {
		return 0, false
	}
	return (major-ptsMajor)<<20 | unix.Minor(rdev), true
}

// ptsOf returns the folder of the slaves of a master that is opened by link: /dev/pts for /dev/ptmx.
func ptsOf(link string) string {
	dir := path.Dir(link)
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Type == unix.DEVPTS_SUPER_MAGIC {
		return dir
	}
	return path.Join(dir, "pts")
}

// masterKey finds out which pseudoterminal a master is of, and the path of its slave.
func masterKey(f *Found) (key ptyKey, slave string, err error) {
	if key.index, err = unix.IoctlGetUint32(f.FD, unix.TIOCGPTN); err != nil {
		return key, "", fmt.Errorf("TIOCGPTN: %w", err)
	}
	dir := ptsOf(f.Link)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return key, "", fmt.Errorf("its devpts: %w", err)
	}
	key.dev = st.Dev
	return key, path.Join(dir, strconv.Itoa(int(key.index))), nil
}

// ptys are the masters of the tree.
func (s *Scene) ptys() map[ptyKey]*Found {
	if s.masters == nil || s.mastersOf != len(s.Files) {
		s.masters, s.mastersOf = map[ptyKey]*Found{}, len(s.Files)
		for _, f := range s.Files {
			if !(ptyKind{}).Match(f) {
				continue
			}
			if key, _, err := masterKey(f); err == nil {
				s.masters[key] = f
			}
		}
	}
	return s.masters
}

// masterOf returns the master of a terminal, if the tree has it.
func (s *Scene) masterOf(f *Found) *Found {
	if f.Stat.Rdev != devTTY {
		index, ok := ptsIndex(f.Stat.Rdev)
		if !ok || hungUp(f) {
			return nil
		}
		return s.ptys()[ptyKey{f.Stat.Dev, index}]
	}
	dev, err := unix.IoctlGetUint32(f.FD, unix.TIOCGDEV)
	index, ok := ptsIndex(uint64(dev))
	if err != nil || !ok {
		return nil
	}
	return s.byIndex(index)
}

// byIndex returns the only master with a number; nil if there is none, or if there are several.
func (s *Scene) byIndex(index uint32) (found *Found) {
	for key, m := range s.ptys() {
		if key.index != index {
			continue
		}
		if found != nil {
			return nil
		}
		found = m
	}
	return found
}

// Controlled returns, by the ids of sessions, the files of the terminals that control them: a slave of each master
// in the tree, or the master itself if no slave is open.
func (s *Scene) Controlled() map[int]image.ObjRef {
	out := map[int]image.ObjRef{}
	for _, m := range s.ptys() {
		sid, err := unix.IoctlGetInt(m.FD, unix.TIOCGSID)
		if err != nil || sid <= 0 {
			continue
		}
		out[sid] = m.Ref
		if f := s.slaveOf(m); f != nil {
			out[sid] = f.Ref
		}
	}
	return out
}

// hungUp tells whether a terminal was hung up under this descriptor: by the end of its session, by
// vhangup(2), or because its master was closed.
func hungUp(f *Found) bool {
	_, err := unix.IoctlGetTermios(f.FD, unix.TCGETS)
	return err == unix.EIO
}

// masterHolder is a descriptor of a master in another process.
type masterHolder struct {
	pid, fd int
	index   uint32
	link    string
}

// masterHolders lists the masters that processes have open which skip does not exclude. fdinfo tells the number.
func masterHolders(skip func(pid int) bool) (all []masterHolder) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || skip(pid) {
			continue
		}
		fds, err := os.ReadDir("/proc/" + p.Name() + "/fd")
		if err != nil {
			continue // vanished
		}
		for _, fd := range fds {
			link, err := os.Readlink("/proc/" + p.Name() + "/fd/" + fd.Name())
			if err != nil || path.Base(link) != "ptmx" {
				continue
			}
			b, err := os.ReadFile("/proc/" + p.Name() + "/fdinfo/" + fd.Name())
			_, after, ok := strings.Cut(string(b), "tty-index:")
			if err != nil || !ok {
				continue
			}
			line, _, _ := strings.Cut(after, "\n")
			index, err := strconv.ParseUint(strings.TrimSpace(line), 10, 32)
			if num, nerr := strconv.Atoi(fd.Name()); err == nil && nerr == nil {
				all = append(all, masterHolder{pid, num, uint32(index), link})
			}
		}
	}
	return all
}

// dying reports whether a process has no memory any more: it is about to close its files, and uses none.
func dying(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return errors.Is(err, fs.ErrNotExist)
}

// masterOutside returns a process outside the tree that has this very master, or 0.
func (s *Scene) masterOutside(f *Found, index uint32) int {
	if !s.holdersRead {
		s.holdersRead = true
		s.holders = masterHolders(func(pid int) bool { return s.member(pid) || pid == os.Getpid() || SameProgram(pid) || dying(pid) })
	}
	const kcmpFile = 0
	self := uintptr(os.Getpid())
	for _, h := range s.holders {
		if h.index != index {
			continue
		}
		r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, self, uintptr(h.pid), kcmpFile, uintptr(f.FD), uintptr(h.fd), 0)
		if errno == 0 && r == 0 {
			return h.pid
		}
	}
	return 0
}

// openOwn opens the slave of a terminal that the tree has itself, or one that is hung up.
func (r *terminalRec) openOwn(rec *image.File, e *Env) (int, error) {
	w, err := openPTYs(e) // also for a hung up one, which must not have the number of one that lives
	if err != nil {
		return -1, err
	}
	if r.PTY != 0 {
		p := w.pairs[r.PTY]
		if p == nil {
			return -1, fmt.Errorf("open file %d of the image is not its master", r.PTY)
		}
		fd, err := openPeer(p.master, openFlags(rec.Flags))
		if err != nil {
			return -1, err
		}
		return finished(fd, rec.Flags, 0, 0)
	}
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/ptmx: %w", err)
	}
	fd := -1
	if err = unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err == nil {
		fd, err = openPeer(m, openFlags(rec.Flags))
	}
	if err == nil {
		fd, err = finished(fd, rec.Flags, 0, 0)
	}
	unix.Close(m) // that hangs it up
	return fd, err
}
