package kind

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// How pseudoterminals are made again: all masters together, before any slave, since /dev/ptmx gives the
// lowest free number; each slave is opened through its master (TIOCGPTPEER). When all are open, what
// would have been in the way is set: the lock, exclusive and packet mode, the text that waits.

// ptyWorld is all pseudoterminals of an image while they are made.
type ptyWorld struct {
	pairs map[image.ObjRef]*ptyPair
	warn  func(format string, args ...any)
}

// ptyPair is one of them.
type ptyPair struct {
	ptyRec
	file   *image.File
	dir    string // of the slave
	master int    // ours; -1: not open yet
	number uint32 // the one it got
	data   []byte // that waits in it: output, input
}

// readPTYs reads and checks the records of all masters.
func readPTYs(e *Env) (*ptyWorld, error) {
	w := &ptyWorld{pairs: map[image.ObjRef]*ptyPair{}, warn: e.Warn}
	seen := map[ptyKey]bool{}
	for i := range e.Manifest.Files {
		rec := &e.Manifest.Files[i]
		if rec.Kind != (ptyKind{}).Name() {
			continue
		}
		p := &ptyPair{file: rec, master: -1, dir: ptsOf(rec.Path)}
		if err := decodeRec(rec, &p.ptyRec); err != nil {
			return nil, err
		}
		key := ptyKey{p.Dev, p.Index}
		switch {
		case p.Index >= maxPTY:
			return nil, fmt.Errorf("the image has a pseudoterminal of number %d, and the highest is %d", p.Index, maxPTY-1)
		case seen[key]:
			return nil, fmt.Errorf("the image has two masters of pseudoterminal %d", p.Index)
		case len(p.Termios) != sizeofTermios || p.LockedBits != nil && len(p.LockedBits) != sizeofTermios1:
			return nil, fmt.Errorf("the settings of pseudoterminal %d in the image have %d and %d bytes, not %d and %d", p.Index, len(p.Termios), len(p.LockedBits), sizeofTermios, sizeofTermios1)
		case p.State > ptyClosed:
			return nil, fmt.Errorf("pseudoterminal %d in the image is in a state %d that this version does not know", p.Index, p.State)
		case path.Base(rec.Path) != "ptmx":
			return nil, fmt.Errorf("the master of pseudoterminal %d in the image was opened as %q", p.Index, rec.Path)
		}
		if err := p.valid(rec, e); err != nil {
			return nil, hostile("pseudoterminal %d in the image: %w", p.Index, err)
		}
		seen[key] = true
		w.pairs[image.ObjRef(i+1)] = p
	}
	return w, nil
}

// CheckOpen is Checker.CheckOpen: whether the number is free.
func (ptyKind) CheckOpen(rec *image.File, e *Env) (string, error) {
	w, err := shared(e, "pseudoterminals to be", func() (*ptyWorld, error) { return readPTYs(e) })
	if err != nil {
		return "", err
	}
	for _, p := range w.pairs {
		if p.file != rec {
			continue
		}
		if err := mayOpen(rec.Path, rec.Flags); err != nil {
			return "", err
		}
		if most, err := os.ReadFile("/proc/sys/kernel/pty/max"); err == nil && p.Index > 0 {
			if n, err := strconv.Atoi(string(bytes.TrimSpace(most))); err == nil && int(p.Index) >= n {
				return "", fmt.Errorf("it was pseudoterminal %d, and this machine has no more than %d; raise /proc/sys/kernel/pty/max", p.Index, n)
			}
		}
		if pid := p.holder(); pid != 0 && !holds(e.Manifest, pid) && e.Policy.Get("pty") != "renumber" {
			return "", p.taken(pid)
		}
	}
	return "", nil
}

// CheckOpen is Checker.CheckOpen: whether the image has the master.
func (terminal) CheckOpen(rec *image.File, e *Env) (string, error) {
	var r terminalRec
	if err := decodeRec(rec, &r); err != nil || r.PTY == 0 {
		return "", err
	}
	w, err := shared(e, "pseudoterminals to be", func() (*ptyWorld, error) { return readPTYs(e) })
	if err == nil && w.pairs[r.PTY] == nil {
		err = fmt.Errorf("terminal %s: open file %d of the image is not its master", rec.Path, r.PTY)
	}
	return "", err
}

// PTY is the master's place in Manifest.Files of a terminal that is made anew, given one of its ends; 0:
// it is no such terminal.
func PTY(files []image.File, ref image.ObjRef) image.ObjRef {
	if ref == 0 || int(ref) > len(files) {
		return 0
	}
	rec := &files[ref-1]
	switch rec.Kind {
	case (ptyKind{}).Name():
		return ref
	case (terminal{}).Name():
		var r terminalRec
		if decodeRec(rec, &r) == nil {
			return r.PTY
		}
	}
	return 0
}

// OpenSlave opens the slave of a master, for a session that has it as its terminal and no descriptor of it.
func OpenSlave(master int) (int, error) { return openPeer(master, unix.O_RDWR|unix.O_NONBLOCK) }

// slave is the path of the slave as it was.
func (p *ptyPair) slave() string { return path.Join(p.dir, strconv.Itoa(int(p.Index))) }

// holder returns a process that has an end of a pseudoterminal of this number open, or 0.
func (p *ptyPair) holder() int {
	if _, err := os.Lstat(p.slave()); err == nil {
		for _, h := range masterHolders(func(int) bool { return false }) {
			if h.index == p.Index && path.Clean(ptsOf(h.link)) == p.dir {
				return h.pid
			}
		}
	}
	return holderOfLink(map[string]bool{p.slave(): true, p.slave() + deletedMark: true})
}

func (p *ptyPair) taken(pid int) error {
	who := "a process that cannot be seen"
	if pid != 0 {
		who = processName(pid)
	}
	return fmt.Errorf("it was pseudoterminal %d (%s), whose number is in use by %s; end that, or restore with --policy pty=renumber, which gives it another number", p.Index, p.slave(), who)
}

// openPTYs makes all masters.
func openPTYs(e *Env) (*ptyWorld, error) {
	return shared(e, "pseudoterminals", func() (*ptyWorld, error) {
		w, err := readPTYs(e)
		if err != nil {
			return nil, err
		}
		places := map[string][]*ptyPair{}
		for _, p := range w.pairs {
			places[p.file.Path] = append(places[p.file.Path], p)
		}
		for _, all := range places {
			slices.SortFunc(all, func(a, b *ptyPair) int { return int(a.Index) - int(b.Index) })
			if err := claim(all, e.Policy.Get("pty") == "renumber"); err != nil {
				w.drop()
				return nil, err
			}
		}
		for _, p := range w.pairs {
			if err := p.setUp(); err != nil {
				w.drop()
				return nil, fmt.Errorf("pseudoterminal %d: %w", p.Index, err)
			}
			if p.number != p.Index {
				e.Warn("terminal %s has the number %d now: its own was in use", p.slave(), p.number)
			}
		}
		return w, nil
	})
}

// claim opens masters by one /dev/ptmx, sorted by number, until each has its own. The number of
// a terminal that was closed just now may be free a moment later.
func claim(all []*ptyPair, renumber bool) error {
	const patience = 2 * time.Second
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		spare, err := sweep(all)
		var missing []*ptyPair
		for _, p := range all {
			if p.master < 0 {
				missing = append(missing, p)
			}
		}
		holder := 0
		if len(missing) > 0 && err == nil {
			holder = missing[0].holder()
		}
		if late := holder != 0 || time.Now().After(end); renumber && late && err == nil {
			for i := range min(len(missing), len(spare)) {
				missing[i].master, missing[i].number = spare[i].master, spare[i].number
				spare[i].master = -1
			}
			missing = missing[min(len(missing), len(spare)):]
		}
		for _, s := range spare {
			if s.master >= 0 {
				unix.Close(s.master) // it had another number
			}
		}
		switch late := holder != 0 || time.Now().After(end); {
		case err != nil || len(missing) == 0:
			return err
		case late && !renumber:
			return missing[0].taken(holder)
		case late:
			return fmt.Errorf("there is no number free for pseudoterminal %d", missing[0].Index)
		}
	}
}

// sweep opens masters upwards until those of all are there that can be had, and as many more as are missing.
func sweep(all []*ptyPair) (spare []*ptyPair, err error) {
	last, want := all[len(all)-1].Index, 0
	for _, p := range all {
		if p.master < 0 {
			want++
		}
	}
	for above := 0; want > 0 && above < want; {
		fd, err := unix.Open(all[0].file.Path, openFlags(all[0].file.Flags), 0)
		if err != nil {
			return spare, fmt.Errorf("%s: %w", all[0].file.Path, err)
		}
		n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
		if err != nil {
			unix.Close(fd) // never used
			return spare, fmt.Errorf("%s: TIOCGPTN: %w", all[0].file.Path, err)
		}
		i := slices.IndexFunc(all, func(p *ptyPair) bool { return p.Index == n && p.master < 0 })
		if i >= 0 {
			all[i].master, all[i].number = fd, n
			want--
			continue
		}
		spare = append(spare, &ptyPair{master: fd, number: n})
		if n > last {
			above++
		}
	}
	return spare, nil
}

// setUp gives a new terminal its settings, and unlocks it.
func (p *ptyPair) setUp() error {
	if err := unix.IoctlSetPointerInt(p.master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("TIOCSPTLCK: %w", err)
	}
	if err := ioctlPtr(p.master, unix.TCSETS2, unsafe.Pointer(&p.Termios[0])); err != nil {
		return fmt.Errorf("TCSETS2: %w", err)
	}
	have := make([]byte, sizeofTermios)
	if err := ioctlPtr(p.master, unix.TCGETS2, unsafe.Pointer(&have[0])); err != nil {
		return fmt.Errorf("TCGETS2: %w", err)
	}
	if !bytes.Equal(have, p.Termios) {
		return fmt.Errorf("the kernel does not take its settings %x, but makes %x of them", p.Termios, have)
	}
	if err := ioctlPtr(p.master, unix.TIOCSWINSZ, unsafe.Pointer(&p.Winsize[0])); err != nil {
		return fmt.Errorf("TIOCSWINSZ: %w", err)
	}
	return nil
}

func (w *ptyWorld) drop() {
	for _, p := range w.pairs {
		if p.master >= 0 {
			unix.Close(p.master) // never used
			p.master = -1
		}
	}
}

// Close sets what would have been in the way before all ends were open.
func (w *ptyWorld) Close() error {
	var errs []error
	for _, p := range w.pairs {
		if p.master < 0 {
			continue // only checked
		}
		if err := p.finish(); err != nil {
			errs = append(errs, fmt.Errorf("pseudoterminal %d: %w", p.Index, err))
		}
	}
	w.drop()
	return errors.Join(errs...)
}

func (p *ptyPair) finish() error {
	if err := p.finishSlave(); err != nil {
		return err
	}
	one := new(int32)
	*one = 1
	for _, x := range [...]struct {
		on  bool
		nr  uint
		arg unsafe.Pointer
	}{
		{p.LockedBits != nil, unix.TIOCSLCKTRMIOS, unsafe.Pointer(unsafe.SliceData(p.LockedBits))},
		{p.Locked, unix.TIOCSPTLCK, unsafe.Pointer(one)},
		{p.Packet, unix.TIOCPKT, unsafe.Pointer(one)},
		{p.Excl, unix.TIOCEXCL, nil},
	} {
		if x.on {
			if err := ioctlPtr(p.master, x.nr, x.arg); err != nil {
				return fmt.Errorf("ioctl %#x: %w", x.nr, err)
			}
		}
	}
	return nil
}

// finishSlave gives the slave its owner and mode and what waits for it. If nobody has the slave, it has been
// open for a moment now, unless nobody ever had it.
func (p *ptyPair) finishSlave() error {
	if p.State == ptyFresh {
		path := path.Join(p.dir, strconv.Itoa(int(p.number)))
		if err := os.Chown(path, int(p.UID), int(p.GID)); err != nil {
			return err
		}
		return unix.Chmod(path, p.Mode&0o7777)
	}
	fd, err := openPeer(p.master, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd) // whoever has the slave has his own
	if err := giveTo(fd, p.UID, p.GID); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, p.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if err := p.inject(p.master, fd, p.data); err != nil {
		return err
	}
	if p.Stopped {
		if err := unix.IoctlSetInt(fd, unix.TCXONC, unix.TCOOFF); err != nil {
			return fmt.Errorf("TCOOFF: %w", err)
		}
	}
	if p.SlaveExcl {
		if err := unix.IoctlSetInt(fd, unix.TIOCEXCL, 0); err != nil {
			return fmt.Errorf("TIOCEXCL: %w", err)
		}
	}
	return nil
}

func (ptyKind) Open(rec *image.File, e *Env) (int, error) {
	w, err := openPTYs(e)
	if err != nil {
		return -1, err
	}
	for _, p := range w.pairs {
		if p.file != rec {
			continue
		}
		if rec.Blob != 0 {
			if p.data, err = e.Blob(rec.Blob); err != nil {
				return -1, err
			}
		}
		fd, err := dup(p.master)
		if err != nil {
			return -1, err
		}
		return finished(fd, rec.Flags, 0, 0)
	}
	return -1, fmt.Errorf("%s: it is not in the image", rec.Path)
}
