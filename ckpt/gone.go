package ckpt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// A file that is mapped or executed may have lost its name since: an upgrade replaced it, or
// the program deleted it, as sem_open(3) does. If it has another name, it is mapped by that. If it
// has none, its content goes into the image as a segment, once, whoever maps it, executes it or
// has it open.

// whereabouts is where a mapped or executed file is now.
type whereabouts struct {
	path   string // leads to it, or led to it if it is gone
	was    string // the name that /proc shows, if path is another one
	gone   bool   // it has no name left
	st     unix.Stat_t
	xattrs []image.XAttr // of one that is gone
}

// notFound is why a file cannot be mapped or executed again.
type notFound struct{ what, remedy string }

// deletedMark is what /proc adds to a name that was deleted.
const deletedMark = " (deleted)"

// findMapped finds the file behind magic, a link of /proc, by the path that it shows. A path that
// ends with deletedMark may be a name like any other.
func findMapped(magic, shown string) (whereabouts, *notFound) {
	var w whereabouts
	if err := unix.Stat(magic, &w.st); err != nil {
		return w, &notFound{"the kernel does not let us look at it: " + err.Error(), "run ckptfs as root in the initial user namespace"}
	}
	w.path = strings.TrimSuffix(shown, deletedMark)
	for _, name := range []string{shown, w.path} {
		if leadsTo(name, &w.st) {
			w.path = name
			return w, nil
		}
	}
	if w.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return w, &notFound{"its path leads to another file now, or to none, and it is a device", "let the program unmap it"}
	}
	f, err := openQuietly(magic)
	if err != nil {
		return w, &notFound{"it was deleted or replaced, and cannot be read: " + err.Error(), "restart the program, or put the file back"}
	}
	defer f.Close()
	if w.st.Nlink > 0 {
		if name := otherName(w.path, &w.st); name != "" {
			w.path, w.was = name, w.path
			return w, nil
		}
		if !strings.HasSuffix(shown, deletedMark) || !kind.CountsNoLinks(int(f.Fd())) {
			return w, &notFound{fmt.Sprintf("its path leads to another file now, or to none, and the file still has %d name(s), which are neither in %s nor in /dev/shm", w.st.Nlink, filepath.Dir(w.path)),
				"link it there again, or restart the program"}
		}
	}
	why := ""
	if w.xattrs, why = kind.GoneFile(int(f.Fd()), w.path); why != "" {
		return w, &notFound{why, "restart the program, or put the file back"}
	}
	w.gone = true
	return w, nil
}

func leadsTo(path string, st *unix.Stat_t) bool {
	var now unix.Stat_t
	return unix.Stat(path, &now) == nil && now.Dev == st.Dev && now.Ino == st.Ino
}

// openQuietly opens a file for reading, if possible without a change of its access time.
func openQuietly(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK, 0)
	if err != nil {
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	return f, err
}

// searched bounds how many names of a folder are looked at.
const searched = 1 << 17

// otherName looks for another link of a file: in the folder where it was, and where sem_open(3)
// and shm_open(3) have theirs.
func otherName(path string, st *unix.Stat_t) string {
	for _, dir := range []string{filepath.Dir(path), "/dev/shm"} {
		if name := nameIn(dir, st); name != "" {
			return name
		}
	}
	return ""
}

// otherNameOnce is otherName that tries first what it found before.
func (s *survey) otherNameOnce(path string, st *unix.Stat_t) string {
	key := keyOf(st)
	if name := s.names[key]; name != "" && leadsTo(name, st) {
		return name
	}
	name := otherName(path, st)
	if name != "" {
		if s.names == nil {
			s.names = map[inode]string{}
		}
		s.names[key] = name
	}
	return name
}

func nameIn(dir string, st *unix.Stat_t) string {
	d, err := os.Open(dir)
	if err != nil {
		return ""
	}
	defer d.Close()
	for n := 0; n < searched; {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			var is unix.Stat_t
			err := unix.Fstatat(int(d.Fd()), name, &is, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil && is.Dev == st.Dev && is.Ino == st.Ino {
				return filepath.Join(dir, name)
			}
		}
		if err != nil || len(names) == 0 {
			return ""
		}
		n += len(names)
	}
	return ""
}

// findExe finds the executable of a process.
func findExe(pid int) (whereabouts, *notFound, error) {
	link, err := os.Readlink(procPath(pid, "exe"))
	if err != nil {
		return whereabouts{}, nil, err
	}
	w, no := findMapped(procPath(pid, "exe"), link)
	return w, no, nil
}

// lookAtExe finds out whether the executable of a process can be kept.
func (s *survey) lookAtExe(l *looked) error {
	if l.status.Kthread {
		return nil // part of the kernel, as task.Check says
	}
	w, no, err := findExe(l.pid)
	if err != nil {
		return err
	}
	l.exe = w
	if no != nil {
		s.findings = append(s.findings, no.executable(l.pid, &w))
	}
	return nil
}

// executable is the refusal of a process for its executable.
func (no *notFound) executable(pid int, w *whereabouts) image.Finding {
	return image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Kind: "executable " + w.path, What: no.what, Remedy: no.remedy}
}

// mapsGone is kind.Scene.MapsGone: whether the look found that the tree maps or executes a file that is gone.
func (s *survey) mapsGone(dev, ino uint64) bool {
	key := inode{dev, ino}
	for _, l := range s.procs {
		if l.exe.gone && keyOf(&l.exe.st) == key {
			return true
		}
		for i := range l.areas {
			if g := l.areas[i].gone; g != nil && keyOf(&g.st) == key {
				return true
			}
		}
	}
	return false
}

// maps is kind.Scene.Maps.
func (s *survey) maps(dev, ino uint64) bool {
	for _, l := range s.procs {
		for i := range l.areas {
			if a := &l.areas[i]; a.Dev == dev && a.Ino == ino {
				return true
			}
		}
	}
	return false
}

func keyOf(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

// goneContent reads a deleted file after the freeze. That is only for one that nobody in the
// tree could write to; a change is noticed all the same.
type goneContent struct {
	f    *os.File
	st   unix.Stat_t
	path string
}

// ReadAt reads whole pages; the last one ends with zeros.
func (g *goneContent) ReadAt(p []byte, off int64) (int, error) {
	n, err := paddedReader{g.f}.ReadAt(p, off)
	if err != nil {
		return n, err
	}
	var now unix.Stat_t
	if err := unix.Fstat(int(g.f.Fd()), &now); err != nil {
		return n, fmt.Errorf("deleted file %s: fstat: %w", g.path, err)
	}
	if now.Size != g.st.Size || now.Mtim != g.st.Mtim {
		return n, fmt.Errorf("deleted file %s was written to while the image was made; take the checkpoint again", g.path)
	}
	return n, nil
}

func (g *goneContent) free() { g.f.Close() } // only read from

// ofGone returns the segment of a file that is gone, which magic leads to.
func (s *segments) ofGone(magic string, w *whereabouts) (image.ObjRef, error) {
	key := keyOf(&w.st)
	if ref := s.refs[key]; ref != 0 {
		return ref, nil
	}
	f, err := openQuietly(magic)
	if err != nil {
		return 0, fmt.Errorf("deleted file %s: %w; it needs root in the initial user namespace", w.path, err)
	}
	g := &goneContent{f: f, path: w.path}
	s.copies = append(s.copies, g)
	if err := unix.Fstat(int(f.Fd()), &g.st); err != nil {
		return 0, fmt.Errorf("deleted file %s: fstat: %w", w.path, err)
	}
	if keyOf(&g.st) != key {
		return 0, fmt.Errorf("deleted file %s is another one now: %w", w.path, errRaced)
	}
	s.list = append(s.list, image.Segment{Path: w.path, Size: g.st.Size, Mode: g.st.Mode, UID: g.st.Uid, GID: g.st.Gid,
		ATime: g.st.Atim.Nano(), MTime: g.st.Mtim.Nano(), XAttrs: w.xattrs})
	s.refs[key] = image.ObjRef(len(s.list))
	return s.refs[key], nil
}

// ofGoneFile is kind.Scene.Gone.
func (s *segments) ofGoneFile(f *kind.Found, path string, writes bool) (image.ObjRef, error) {
	magic := fmt.Sprintf("/proc/self/fd/%d", f.FD)
	own, err := openQuietly(magic)
	if err != nil {
		return 0, err
	}
	defer own.Close()
	w := whereabouts{path: path, gone: true, st: f.Stat}
	why := ""
	if w.xattrs, why = kind.GoneFile(int(own.Fd()), path); why != "" {
		return 0, errors.New(why)
	}
	ref, err := s.ofGone(magic, &w)
	if err == nil && writes {
		s.written[ref] = true
	}
	return ref, err
}

// maxHeld bounds, in bytes, what is copied of one file while the tree stands still.
const maxHeld = 1 << 30

// copyWritten copies the deleted files that the tree could write to once it goes on.
func (s *segments) copyWritten() error {
	for i, c := range s.copies {
		g, ok := c.(*goneContent)
		if !ok || !s.written[image.ObjRef(i+1)] {
			continue
		}
		es, err := dataExtents(g.f, g.st.Size)
		if err != nil {
			return fmt.Errorf("deleted file %s: %w", g.path, err)
		}
		if n := extentsLen(es); n > maxHeld {
			return &image.RefusedError{Findings: []image.Finding{{Severity: image.Refuse, FD: image.NoFD, Kind: "deleted file " + g.path,
				What:   fmt.Sprintf("it holds %d bytes, and the tree can write to it: that is too much to be copied while the tree stands still", n),
				Remedy: "choose --kill or --stop, with which it is streamed, or give the file a name"}}}
		}
		h, err := newHeld(es)
		if err != nil {
			return err
		}
		s.list[i].Extents = es
		if err := h.fill(paddedReader{g.f}); err != nil {
			h.free()
			return fmt.Errorf("deleted file %s: %w", g.path, err)
		}
		s.copies[i] = h
		g.free()
	}
	return nil
}

// finish finds what there is of the deleted files that have not been copied.
func (s *segments) finish() error {
	for i, c := range s.copies {
		g, ok := c.(*goneContent)
		if !ok {
			continue
		}
		es, err := dataExtents(g.f, g.st.Size)
		if err != nil {
			return fmt.Errorf("deleted file %s: %w", g.path, err)
		}
		s.list[i].Extents = es
	}
	return nil
}

// content is what a segment holds.
type content interface {
	io.ReaderAt
	free()
}
