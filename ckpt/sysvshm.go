package ckpt

import (
	"fmt"
	"os"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"golang.org/x/sys/unix"
)

// Shared memory of System V (shmget(2)) belongs to a tree if a process of it has it attached, or if
// nobody has it attached and a living process of the tree made it. It is refused if somebody
// outside has it attached too. What a process of the tree only used, and nobody has attached now, is not the
// tree's: it is a loss if its maker is gone, as then nobody else is there to whom it could belong. So is what a process
// of the tree made and only others have attached.
//
// The kernel writes down who attached or detached a segment last and when. A snapshot is a
// fork and changes that, and so does reading a segment that nobody has attached; that cannot be undone.

// sysvDev stands for the device of System V shared memory: the kernel gives each segment its id as inode
// number, and the same device as memfds, which may have the same number.
const sysvDev = ^uint64(0)

// sysvID is the segment that a mapping shows.
func sysvID(m *procfs.Mapping) (id int32, ok bool) {
	id, _, ok = sysv.Mapped(m.Path, m.Ino, m.Shared, m.Deleted)
	return id, ok
}

// sysv reports whether the area is attached shared memory of System V.
func (a *area) sysv() bool {
	_, ok := sysvID(&a.Mapping)
	return ok
}

const sysvKind = "SysV shared memory"

// attached counts the mappings of each segment in the tree.
type attached map[int32]uint64

func (n attached) add(areas []area) {
	for i := range areas {
		if id, ok := sysvID(&areas[i].Mapping); ok {
			n[id]++
		}
	}
}

// checkSysV finds what of the tree's shared memory of System V cannot be kept.
func (s *survey) checkSysV() error {
	all, err := sysv.ReadShm()
	if err != nil {
		return err
	}
	n, first := attached{}, map[int32]*area{}
	pids := map[int32]int{}
	for _, l := range s.procs {
		n.add(l.areas)
		for i := range l.areas {
			if id, ok := sysvID(&l.areas[i].Mapping); ok && first[id] == nil {
				first[id], pids[id] = &l.areas[i], l.pid
			}
		}
	}
	for id, a := range first {
		if what, remedy := s.attachedElsewhere(id, n[id], all); what != "" {
			s.findings = append(s.findings, image.Finding{Severity: image.Refuse, PID: int32(pids[id]), FD: image.NoFD, Addr: a.Start,
				Kind: sysvKind, What: what, Remedy: remedy})
		}
	}
	for i := range all {
		if shm := &all[i]; n[shm.ID] == 0 {
			s.findings = append(s.findings, checkLoose(shm, s.madeBy)...)
		}
	}
	return nil
}

// attachedElsewhere says why a segment that the tree has mapped n times cannot be kept, or "".
func (s *survey) attachedElsewhere(id int32, n uint64, all []sysv.Shm) (what, remedy string) {
	i := slices.IndexFunc(all, func(x sysv.Shm) bool { return x.ID == id })
	switch {
	case i < 0:
		return fmt.Sprintf("/proc/sysvipc/shm has no segment %d", id), "try again, or see the IPC namespace with lsns"
	case all[i].Attach == n:
		return "", ""
	}
	if pid := s.out.sysv(id); pid != 0 {
		return fmt.Sprintf("pid %d, which is outside the tree, has the segment %d (key %#x) attached too", pid, id, uint32(all[i].Key)),
			fmt.Sprintf("checkpoint a tree that holds pid %d too", pid)
	}
	return fmt.Sprintf("the segment %d (key %#x) is attached %d times, %d of them in the tree", id, uint32(all[i].Key), all[i].Attach, n),
		"find who else has it, in /proc/PID/maps, and checkpoint a tree that holds him too"
}

// checkLoose says what becomes of a segment that nobody of the tree has attached.
func checkLoose(shm *sysv.Shm, made func(pid int, ctime int64) bool) []image.Finding {
	f := image.Finding{PID: int32(shm.CPID), FD: image.NoFD, Kind: sysvKind}
	switch {
	case shm.Attach != 0:
		if made(shm.CPID, shm.CTime) {
			f.Severity = image.Lose
			f.What = fmt.Sprintf("it made the segment %d (key %#x), which only processes outside the tree have attached now, and which is theirs", shm.ID, uint32(shm.Key))
			f.Remedy = "let it attach the segment, or see to it that the segment is there at the restore"
			return []image.Finding{f}
		}
	case made(shm.CPID, shm.CTime):
		if sysv.Goes() {
			f.Severity = image.Refuse
			f.What = fmt.Sprintf("nobody has its segment %d (key %#x) attached, and who reads it now destroys it, as kernel.shm_rmid_forced is set", shm.ID, uint32(shm.Key))
			f.Remedy = "wait until the program has it attached, or set kernel.shm_rmid_forced to 0"
			return []image.Finding{f}
		}
	case made(shm.LPID, shm.CTime) && !sysv.Lives(shm.CPID, shm.CTime):
		f.PID, f.Severity = int32(shm.LPID), image.Lose
		f.What = fmt.Sprintf("it was the last to use the segment %d (key %#x), which pid %d made that is gone, and which nobody has attached", shm.ID, uint32(shm.Key), shm.CPID)
		f.Remedy = "let it attach the segment, or see to it that the segment is there at the restore"
		return []image.Finding{f}
	}
	return nil
}

// madeBy reports whether a process id is one of the tree that was there at a time, in seconds.
func (s *survey) madeBy(pid int, at int64) bool {
	l := s.find(pid)
	return l != nil && !l.zombie() && sysv.StartedBefore(&l.stat, at)
}

// sysv returns the pid of another process that has a segment attached, or 0.
func (o *outside) sysv(id int32) int {
	o.readMaps()
	return o.maps[inode{sysvDev, uint64(id)}]
}

// captureSysV copies the segments of the tree. all is what there was before any snapshot was made.
func (c *Checkpoint) captureSysV(all []sysv.Shm) error {
	n := attached{}
	for _, p := range c.procs {
		n.add(p.mem.areas)
	}
	for i := range all {
		shm := &all[i]
		switch {
		case n[shm.ID] != 0 && shm.Attach != n[shm.ID]:
			return fmt.Errorf("pid %d: the segment %d of SysV shared memory is attached %d times, %d of them in the tree: %w", c.procs[0].pid, shm.ID, shm.Attach, n[shm.ID], errRaced)
		case n[shm.ID] != 0:
			if err := c.captureAttached(shm); err != nil {
				return err
			}
		case shm.Attach == 0 && c.madeBy(shm.CPID, shm.CTime):
			if err := c.captureLoose(shm); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Checkpoint) madeBy(pid int, at int64) bool {
	i := slices.IndexFunc(c.procs, func(p *proc) bool { return p.pid == pid })
	return i >= 0 && sysv.StartedBefore(&c.procs[i].stat, at)
}

// captureAttached copies a segment by way of the first mapping of it.
func (c *Checkpoint) captureAttached(shm *sysv.Shm) error {
	for _, p := range c.procs {
		for k := range p.mem.areas {
			a := &p.mem.areas[k]
			id, key, ok := sysv.Mapped(a.Path, a.Ino, a.Shared, a.Deleted)
			if !ok || id != shm.ID {
				continue
			}
			f, err := os.Open(mapFile(p.pid, &a.Mapping))
			if err != nil {
				return fmt.Errorf("pid %d: shared memory at %#x: %w; it needs root in the initial user namespace", p.pid, a.Start, err)
			}
			defer f.Close()
			return c.segs.addSysV(f, shm, key)
		}
	}
	return nil
}

// captureLoose copies a segment that nobody has attached.
func (c *Checkpoint) captureLoose(shm *sysv.Shm) error {
	if sysv.Goes() {
		return image.Refusals(checkLoose(shm, c.madeBy))
	}
	a, err := sysv.Attach(shm.ID, false)
	if err != nil {
		return fmt.Errorf("pid %d: %w", shm.CPID, err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", a.FD))
	if err == nil {
		err = c.segs.addSysV(f, shm, shm.Key)
		f.Close() // opened for reading
	}
	return join(err, a.Close())
}

// addSysV copies the content of a segment; made is the key that it was made with.
func (s *segments) addSysV(f *os.File, shm *sysv.Shm, made int32) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("SysV shared memory %d: fstat: %w", shm.ID, err)
	}
	v := &image.SysVShm{ID: shm.ID, Key: shm.Key, Made: made, Size: shm.Size, Mode: shm.Mode & 0o777, UID: shm.UID, GID: shm.GID, CUID: shm.CUID, CGID: shm.CGID,
		CPID: int32(shm.CPID), LPID: int32(shm.LPID), Dest: shm.Mode&sysv.ShmDest != 0, Locked: shm.Mode&sysv.ShmLocked != 0}
	if !v.Dest {
		v.Made = v.Key
	}
	seg := image.Segment{Size: st.Size, SysV: v}
	h, err := copySegment(f, &st, &seg)
	if err != nil {
		return fmt.Errorf("SysV shared memory %d: %w", shm.ID, err)
	}
	s.copies = append(s.copies, h)
	seg.Extents = h.extents
	s.list = append(s.list, seg)
	s.refs[inode{sysvDev, uint64(shm.ID)}] = image.ObjRef(len(s.list))
	return nil
}

// wholePages reads a file by a mapping of it: System V shared memory holds what was written behind its end
// in the last page, and read(2) does not give that.
type wholePages struct{ b []byte }

func mapWhole(f *os.File, size int64) (*wholePages, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, int((uint64(size)+pageSize-1)&^(pageSize-1)), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return &wholePages{b}, nil
}

func (w *wholePages) ReadAt(p []byte, off int64) (int, error) { return copy(p, w.b[off:]), nil }

func (w *wholePages) close() { _ = unix.Munmap(w.b) } // it cannot fail for a mapping of our own
