package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"golang.org/x/sys/unix"
)

// Shared memory of System V is made by the process that had made it, when all processes are
// there, and attached by each of them while its memory is built. If the restore fails, what was made is removed.
//
// Such memory outlives its processes. A segment of the image that is still there, attached by
// nobody, is used again: its content becomes that of the image (policy ipc), last of all. Whether it is the
// one tells its id, key, size, creator and maker; our own from a restore that was killed is the same to us.

// sysvSegment is our hold of one segment.
type sysvSegment struct {
	at    *sysv.Attachment // as long as it is there, so is the segment
	there bool             // it was there before
	made  bool             // by us
}

// sysvOf returns what a VMA shows of System V, or nil.
func (j *job) sysvOf(v *image.VMA) *image.SysVShm {
	if v.Kind != image.VMASegment {
		return nil
	}
	return j.m.Segments[v.Segment-1].SysV
}

// attachments counts the VMAs that show a segment.
func attachments(m *image.Manifest, ref image.ObjRef) (n uint64) {
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.MM == 0 {
			continue
		}
		for k := range m.MMs[t.MM-1].VMAs {
			if v := &m.MMs[t.MM-1].VMAs[k]; v.Kind == image.VMASegment && v.Segment == ref {
				n++
			}
		}
	}
	return n
}

func sysvName(v *image.SysVShm) string {
	return fmt.Sprintf("SysV shared memory %d (key %#x)", v.ID, uint32(v.Made))
}

// sameSegment reports whether a segment is the one of the image. One that is marked for removal goes with its processes, but not
// before it has been marked.
func sameSegment(v *image.SysVShm, is *sysv.Shm) bool {
	return is.ID == v.ID && (is.Key == v.Key || v.Dest && is.Key == v.Made) && is.Size == v.Size && is.CUID == v.CUID && is.CGID == v.CGID && is.CPID == int(v.CPID) && is.Mode&sysv.ShmDest == 0
}

// checkSysV finds segments that are still there, or that others have under the same id or key.
func (j *job) checkSysV() error {
	j.sysv = map[image.ObjRef]*sysvSegment{}
	var all []sysv.Shm
	for i := range j.m.Segments {
		v := j.m.Segments[i].SysV
		if v == nil {
			continue
		}
		if all == nil {
			var err error
			if all, err = sysv.ReadShm(); err != nil {
				return err
			}
		}
		s := &sysvSegment{}
		j.sysv[image.ObjRef(i+1)] = s
		if err := j.checkSysVOne(image.ObjRef(i+1), v, all, s); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) checkSysVOne(ref image.ObjRef, v *image.SysVShm, all []sysv.Shm, s *sysvSegment) error {
	n := attachments(j.m, ref)
	if v.Dest && n == 0 {
		return &ImageError{0, sysvName(v) + " is marked for removal, and nobody has it attached"}
	}
	if n == 0 && sysv.Goes() {
		return &HostError{What: sysvName(v) + " is attached by nobody, and the kernel destroys such memory here", Remedy: "set kernel.shm_rmid_forced to 0"}
	}
	if i := slices.IndexFunc(all, func(x sysv.Shm) bool { return x.ID == v.ID }); i >= 0 {
		is := &all[i]
		remove := fmt.Sprintf("if nobody needs it any more, remove it (ipcrm -m %d) and restore again", is.ID)
		switch {
		case !sameSegment(v, is):
			return &HostError{What: fmt.Sprintf("%s: there is another segment with that id, with key %#x and %d bytes, made by pid %d of uid %d", sysvName(v), uint32(is.Key), is.Size, is.CPID, is.CUID), Remedy: remove}
		case is.Attach != 0:
			return attachedError(v, is.Attach)
		case j.env.Policy.Get("ipc") == "refuse":
			return &HostError{What: sysvName(v) + " is still there, and the policy ipc=refuse wants it left alone", Remedy: remove}
		}
		s.there = true
		j.warn("%s is still there; its content is that of the image again", sysvName(v))
		return nil
	}
	if i := slices.IndexFunc(all, func(x sysv.Shm) bool { return v.Key != 0 && x.Key == v.Key }); i >= 0 {
		return &HostError{What: fmt.Sprintf("%s: the segment %d has its key now, made by pid %d of uid %d", sysvName(v), all[i].ID, all[i].CPID, all[i].CUID),
			Remedy: fmt.Sprintf("end the program that uses it and remove it (ipcrm -m %d)", all[i].ID)}
	}
	return nil
}

// attachedError names who has attached a segment.
func attachedError(v *image.SysVShm, n uint64) error {
	who := fmt.Sprintf("%d mappings", n)
	if pid := attacher(v.ID); pid != 0 {
		who = fmt.Sprintf("pid %d", pid)
	}
	return &HostError{What: fmt.Sprintf("%s is there and attached by %s, which the restore would change it under", sysvName(v), who), Remedy: "end that process, or let it detach the memory, and restore again"}
}

// makeSysV makes the segments, in processes that are stubs yet, and fills those that are new.
func (j *job) makeSysV() error {
	for i := range j.m.Segments {
		ref := image.ObjRef(i + 1)
		s := j.sysv[ref]
		if s == nil {
			continue
		}
		v := j.m.Segments[i].SysV
		err := j.makeSegmentSysV(ref, v, s)
		if err == nil && s.made {
			err = j.fillSysV(ref, s)
		}
		if err != nil {
			return fmt.Errorf("restore: %s, %d bytes: %w", sysvName(v), v.Size, err)
		}
	}
	return nil
}

// makeSegmentSysV makes a segment, or finds the one that is there, and attaches it here.
func (j *job) makeSegmentSysV(ref image.ObjRef, v *image.SysVShm, s *sysvSegment) (err error) {
	if s.there {
		s.at, err = sysv.Attach(v.ID, true)
		return err
	}
	return j.asMaker(int(v.CPID), sysvName(v), func(p *proc) error {
		if err := j.withIDs(p, v.CUID, v.CGID, func() error { return j.shmget(p, &j.m.Segments[ref-1], s) }); err != nil {
			return err
		}
		var err error
		s.at, err = sysv.Attach(v.ID, true) // before its maker may end
		return err
	})
}

// shmget makes a segment in p.
func (j *job) shmget(p *proc, seg *image.Segment, s *sysvSegment) error {
	v := seg.SysV
	flags := uint64(sysv.IPCCreat | sysv.IPCExcl | v.Mode&0o777)
	if seg.Huge != 0 {
		flags |= sysv.ShmHugeTLB | uint64(seg.Huge)<<sysv.ShmHugeShift
	}
	get := func(key int32) error {
		return sysv.Make("shm", "SysV shared memory segment", v.ID, func() (int32, error) {
			id, err := p.rem.Syscall(unix.SYS_SHMGET, uint64(uint32(key)), v.Size, flags)
			if errors.Is(err, unix.ENOMEM) { // it may have been made with SHM_NORESERVE, which nothing tells
				id, err = p.rem.Syscall(unix.SYS_SHMGET, uint64(uint32(key)), v.Size, flags|sysv.ShmNoReserve)
			}
			return int32(id), err
		}, func(id int32) error { return sysv.Remove("shm", id) })
	}
	err := get(v.Made)
	if errors.Is(err, unix.EEXIST) && v.Dest { // another one has got its key since
		j.warn("%s is marked for removal, and another segment has its key now: maps shows it with the key 0", sysvName(v))
		err = get(0)
	}
	s.made = err == nil
	return makeError(err, "kernel.shmmax, kernel.shmall and kernel.shmmni, or give it memory")
}

// fillSysV writes the image's pages into a segment.
func (j *job) fillSysV(ref image.ObjRef, s *sysvSegment) error {
	seg := &j.m.Segments[ref-1]
	if seg.Huge != 0 {
		return j.fillHuge(ref, s.at.FD)
	}
	for e, ext := range seg.Extents {
		off := j.r.SegmentOffset(ref, e)
		for done := uint64(0); done < ext.Len; {
			n := min(ext.Len-done, copyLen)
			b, err := unix.Mmap(s.at.FD, int64(ext.Start+done), int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return fmt.Errorf("map %d bytes of it at %#x: %w", n, ext.Start+done, err)
			}
			_, err = j.r.ReadAt(b, off+int64(done)) // the last page too, which read(2) and write(2) end early
			if err := errors.Join(err, unix.Munmap(b)); err != nil {
				return fmt.Errorf("read the image: %w", err)
			}
			done += n
		}
	}
	return nil
}

// attachment is what one shmat(2) has attached and of which the VMAs are left: shmdt(2) detaches them together,
// as they have one open file.
type attachment struct {
	segment image.ObjRef
	base    uint64 // where the segment began
	write   bool
}

// attachSysV attaches the segments of an address space. What is left of one in parts is attached whole at
// a free place, and the parts are moved.
func (j *job) attachSysV(p *proc, mm *image.MM) error {
	parts := map[attachment][]*image.VMA{}
	var order []attachment
	for i := range mm.VMAs {
		v := &mm.VMAs[i]
		if j.sysvOf(v) == nil {
			continue
		}
		a := attachment{v.Segment, v.Start - v.Offset, writes(v)}
		if parts[a] == nil {
			order = append(order, a)
		}
		parts[a] = append(parts[a], v)
	}
	if len(order) == 0 {
		return nil
	}
	room, err := j.sysvRoom(p.pid, mm)
	if err != nil {
		return err
	}
	f := &feeder{p: p}
	for _, a := range order {
		if err := f.attach(&j.m.Segments[a.segment-1], a, parts[a], room); err != nil {
			return err
		}
	}
	return f.flush()
}

// attach queues one attachment.
func (f *feeder) attach(seg *image.Segment, a attachment, parts []*image.VMA, room uint64) error {
	label := fmt.Sprintf("attach SysV shared memory %d at %#x", seg.SysV.ID, a.base)
	flags, prot := uint64(sysv.ShmReadOnly), uint32(unix.PROT_READ)
	if a.write {
		flags, prot = 0, unix.PROT_READ|unix.PROT_WRITE
	}
	whole := wholeLen(seg)
	at, move := a.base, false
	if v := parts[0]; v.Offset != 0 || v.End-v.Start != whole {
		at, move = room, true
	}
	b, err := f.batch()
	if err != nil {
		return err
	}
	b.Call(unix.SYS_SHMAT, uint64(seg.SysV.ID), at, flags).Label(label)
	for _, v := range parts {
		if b, err = f.batch(); err != nil {
			return err
		}
		length := v.End - v.Start
		if move {
			b.Call(unix.SYS_MREMAP, room+v.Offset, length, length, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, v.Start).Label(label)
		}
		if v.Prot != prot {
			b.Call(unix.SYS_MPROTECT, v.Start, length, uint64(v.Prot)).Label(label)
		}
		adviseEarly(b, v)
	}
	if move {
		b.Call(unix.SYS_MUNMAP, room, whole).Label(label)
	}
	return nil
}

// wholeLen is how much address space a segment takes.
func wholeLen(seg *image.Segment) uint64 {
	page := uint64(pageSize)
	if seg.Huge != 0 {
		page = 1 << seg.Huge
	}
	return (uint64(seg.Size) + page - 1) &^ (page - 1)
}

// sysvRoom finds addresses where no VMA will be, for the largest segment that is attached in part; 0: none is.
func (j *job) sysvRoom(pid int, mm *image.MM) (uint64, error) {
	need, align := uint64(0), uint64(pageSize)
	used := []span{{uint64(j.hole), j.hole.end()}}
	for i := range mm.VMAs {
		v := &mm.VMAs[i]
		used = append(used, span{v.Start, v.End})
		if j.sysvOf(v) == nil {
			continue
		}
		seg := &j.m.Segments[v.Segment-1]
		if whole := wholeLen(seg); v.End-v.Start != whole {
			need = max(need, whole)
			if seg.Huge != 0 {
				align = max(align, 1<<seg.Huge)
			}
		}
	}
	if need == 0 {
		return 0, nil
	}
	at, ok := freeRange(used, holeMin, holeMax, need+align)
	if !ok {
		return 0, &HostError{What: fmt.Sprintf("pid %d: there is no room of %d bytes in its address space, where SysV shared memory can be attached that it has a part of", pid, need),
			Remedy: "let the program detach it before the checkpoint"}
	}
	return (at + align - 1) &^ (align - 1), nil
}

// segmentsThere returns the segments of the image that seem to be there already.
func segmentsThere(m *image.Manifest) map[image.ObjRef]bool {
	there := map[image.ObjRef]bool{}
	all, err := sysv.ReadShm()
	for i := range m.Segments {
		if v := m.Segments[i].SysV; v != nil && err == nil {
			there[image.ObjRef(i+1)] = slices.ContainsFunc(all, func(is sysv.Shm) bool { return sameSegment(v, &is) })
		}
	}
	return there
}

// attacher returns a process that has a segment attached, or 0.
func attacher(id int32) int {
	for _, pid := range sysv.Numbers("/proc") {
		if mapsSysV(pid, id) {
			return pid
		}
	}
	return 0
}

// capData is struct __user_cap_data_struct twice, with everything effective that is permitted.
func capData() ([]byte, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return nil, fmt.Errorf("capget: %w", err)
	}
	var b []byte
	for _, h := range have {
		b = binary.LittleEndian.AppendUint32(b, h.Permitted)
		b = binary.LittleEndian.AppendUint32(b, h.Permitted)
		b = binary.LittleEndian.AppendUint32(b, h.Inheritable)
	}
	return b, nil
}
