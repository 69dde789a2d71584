package restore

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

const (
	taskSize     = 0x7fff_ffff_f000 // end of a process's address space with four-level page tables
	archMapVDSO  = 0x2003           // ARCH_MAP_VDSO_64 of asm/prctl.h
	prSetVMA     = 0x53564d41       // PR_SET_VMA of linux/prctl.h
	prSetVMAName = 0                // PR_SET_VMA_ANON_NAME
)

// feeder runs calls in batches as large as fit.
type feeder struct {
	p *proc
	b *ptrace.Batch
}

// batch returns the batch to add a few calls to.
func (f *feeder) batch() (*ptrace.Batch, error) {
	const enough = 8 << 10
	if f.b != nil && f.b.Room() < enough {
		if err := f.flush(); err != nil {
			return nil, err
		}
	}
	if f.b == nil {
		b, err := f.p.rem.NewBatch()
		if err != nil {
			return nil, err
		}
		f.b = b
	}
	return f.b, nil
}

// flush runs what has been added.
func (f *feeder) flush() error {
	b := f.b
	f.b = nil
	if b == nil {
		return nil
	}
	if err := b.Run(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// each adds calls for every VMA.
func (f *feeder) each(vmas []image.VMA, add func(b *ptrace.Batch, v *image.VMA)) error {
	for i := range vmas {
		b, err := f.batch()
		if err != nil {
			return err
		}
		add(b, &vmas[i])
	}
	return f.flush()
}

// buildMemory gives a stub the address space of its process.
func (j *job) buildMemory(ctx context.Context, p *proc) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("restore pid %d: %w", p.pid, err)
	}
	mm := &j.m.MMs[p.task.MM-1]
	if err := j.clear(p, mm); err != nil {
		return err
	}
	if err := j.settleShared(p); err != nil {
		return err
	}
	if err := j.mapAll(p, mm); err != nil {
		return err
	}
	if err := j.makeAIO(ctx, p, mm); err != nil {
		return err
	}
	if err := j.fill(ctx, p, int(p.task.MM-1)); err != nil {
		return err
	}
	f := &feeder{p: p}
	if err := f.each(mm.VMAs, func(b *ptrace.Batch, v *image.VMA) {
		if v.Kind != image.VMARing {
			adviseVMA(b, v)
		}
	}); err != nil {
		return err
	}
	if err := f.guard(mm); err != nil {
		return err
	}
	exe := []int{j.executable(mm)}
	return j.arrive(p, 0, nil, exe, 0, func(b *ptrace.Batch, at []int) {
		task.WriteMM(b, mm, at[0])
		b.Call(unix.SYS_CLOSE, uint64(at[0])).Label("close the executable")
	})
}

// mapAll maps every VMA at its place, some at a time: as many as map no more files than
// fit into a message and into the limit of open files.
func (j *job) mapAll(p *proc, mm *image.MM) error {
	room, err := roomFor(p.pid, 1+maxRights)
	if err != nil {
		return err
	}
	if err := j.attachSysV(p, mm); err != nil {
		return err
	}
	for vmas := mm.VMAs; len(vmas) > 0; {
		nums := map[mmKey]int{}
		var fds []int
		n := 0
		for ; n < len(vmas) && len(fds) < room-1; n++ {
			v := &vmas[n]
			if _, ok := nums[fdKey(v)]; ok || !backed(v) || j.sysvOf(v) != nil {
				continue
			}
			fds = append(fds, j.mapFile(v))
			nums[fdKey(v)] = len(fds) // the channel is 0
		}
		if n == 0 {
			return noRoom(p.pid, 2, room)
		}
		if len(fds) > 0 {
			if err := j.arrive(p, 0, nil, fds, 0, func(*ptrace.Batch, []int) {}); err != nil {
				return err
			}
		}
		f := &feeder{p: p}
		err := f.each(vmas[:n], func(b *ptrace.Batch, v *image.VMA) {
			if j.sysvOf(v) != nil || p.has(v) {
				return // it is there
			}
			mapVMA(b, v, func() uint64 { return uint64(nums[fdKey(v)]) })
		})
		if err != nil {
			return err
		}
		if _, err := p.call("close mapped files", unix.SYS_CLOSE_RANGE, 1, ^uint64(0)>>32, 0); err != nil {
			return err
		}
		vmas = vmas[n:]
	}
	return nil
}

// mmKey is what a VMA maps: a file or a segment.
type mmKey struct {
	path    string
	write   bool
	segment image.ObjRef
}

func fdKey(v *image.VMA) mmKey {
	if v.Kind == image.VMASegment {
		return mmKey{segment: v.Segment, write: writes(v)}
	}
	return mmKey{path: v.File.Path, write: writes(v)}
}

// backed reports whether a VMA maps a file or a segment.
func backed(v *image.VMA) bool {
	return v.Kind == image.VMASegment || v.Kind == image.VMAFilePrivate || v.Kind == image.VMAFileShared
}

// mapFile is our descriptor of what a VMA maps.
func (j *job) mapFile(v *image.VMA) int {
	if v.Kind != image.VMASegment {
		return j.mapped[mapKey{v.File.Path, writes(v)}]
	}
	if ro, ok := j.readable[v.Segment]; ok && !writes(v) {
		return ro
	}
	return j.segs[v.Segment-1]
}

// clear takes everything out of a stub's address space but its own memory, and maps the
// vdso, which can only be done while there is none, where it was.
func (j *job) clear(p *proc, mm *image.MM) error {
	vdso := uint64(0)
	for i := range mm.VMAs {
		if k := mm.VMAs[i].Kind; k == image.VMAVvar || k == image.VMAVDSO {
			vdso = mm.VMAs[i].Start
			break
		}
	}
	if vdso == 0 {
		return &ImageError{p.pid, "it has no vdso, which this version needs to let it go"}
	}
	err := p.batch(func(b *ptrace.Batch) {
		for _, s := range unneeded(j.hole, j.keepShared(p)) {
			b.Call(unix.SYS_MUNMAP, s.Start, s.End-s.Start).Label("unmap what is not the stub's")
		}
		b.Call(unix.SYS_ARCH_PRCTL, archMapVDSO, vdso).Label(fmt.Sprintf("map the vdso at %#x", vdso))
	})
	if err != nil {
		return err
	}
	return writeLeftovers(p, mm)
}

// writeLeftovers puts into the vdso what a killed checkpoint left there and a signal handler
// may return into.
func writeLeftovers(p *proc, mm *image.MM) error {
	i := slices.IndexFunc(mm.VMAs, func(v image.VMA) bool { return v.Kind == image.VMAVDSO })
	for _, l := range mm.Leftovers {
		if i < 0 {
			return &ImageError{p.pid, "it has bytes for a vdso and no vdso"}
		}
		at := mm.VMAs[i].Start + uint64(l.Off)
		if _, err := p.rem.Mem().WriteAt(l.Bytes, int64(at)); err != nil {
			return fmt.Errorf("restore pid %d: write %d bytes of its vdso at %#x: %w", p.pid, len(l.Bytes), at, err)
		}
	}
	return nil
}

// mapVMA queues mapping a VMA. A private one that was writable once ("ac": it is accounted)
// is mapped writable first, so that it is accounted again.
func mapVMA(b *ptrace.Batch, v *image.VMA, fd func() uint64) {
	if v.Kind == image.VMAVDSO || v.Kind == image.VMAVvar || v.Kind == image.VMARing || v.Kind == image.VMAAIO {
		return // an io_uring or AIO context is mapped when there is one
	}
	flags := uint64(v.Flags) | unix.MAP_FIXED_NOREPLACE
	num, off := ^uint64(0), uint64(0)
	if v.Kind == image.VMAAnon {
		flags |= unix.MAP_ANONYMOUS
	} else {
		num, off = fd(), v.Offset
	}
	b.Call(unix.SYS_MMAP, v.Start, v.End-v.Start, uint64(firstProt(v)), flags, num, off).
		Label(fmt.Sprintf("map %#x-%#x %s", v.Start, v.End, v.Name+v.File.Path))
	if protectFirst(v) {
		protect(b, v)
	}
	adviseEarly(b, v)
}

// adviseEarly queues what comes before a VMA is filled.
func adviseEarly(b *ptrace.Batch, v *image.VMA) {
	task.WritePolicy(b, v)        // this where they lie
	for _, f := range v.VMFlags { // these decide whether the pages to come are huge
		switch f {
		case "hg":
			advise(b, v, unix.MADV_HUGEPAGE)
		case "nh":
			advise(b, v, unix.MADV_NOHUGEPAGE)
		case "gu": // it had guard pages once; the kernel remembers, and nothing depends on it
			if len(v.Guards) == 0 {
				b.Call(unix.SYS_MADVISE, v.Start, pageSize, madvGuardInstall).Ignore()
				b.Call(unix.SYS_MADVISE, v.Start, pageSize, madvGuardRemove).Ignore()
			}
		}
	}
}

// firstProt is the protection that a VMA is mapped with.
func firstProt(v *image.VMA) uint32 {
	if v.Flags&unix.MAP_PRIVATE != 0 && slices.Contains(v.VMFlags, "ac") {
		return v.Prot | unix.PROT_WRITE
	}
	return v.Prot
}

// protectFirst reports whether a VMA gets its final protection before it is filled: what is filled
// by UFFDIO_COPY or is small can be filled whatever its protection. That of pages that are there
// already costs ten times as much, a message to the other CPUs for each VMA.
func protectFirst(v *image.VMA) bool {
	return viaUFFD(v) || stored(v) < worthUFFD
}

// protect queues the final protection of a VMA.
func protect(b *ptrace.Batch, v *image.VMA) {
	if firstProt(v) != v.Prot {
		b.Call(unix.SYS_MPROTECT, v.Start, v.End-v.Start, uint64(v.Prot)).
			Label(fmt.Sprintf("protect %#x-%#x", v.Start, v.End))
	}
}

func advise(b *ptrace.Batch, v *image.VMA, advice uint64) {
	b.Call(unix.SYS_MADVISE, v.Start, v.End-v.Start, advice).
		Label(fmt.Sprintf("madvise %d for %#x-%#x", advice, v.Start, v.End))
}

// advices are the VmFlags that madvise(2) sets without touching pages.
var advices = map[string]uint64{
	"dc": unix.MADV_DONTFORK,
	"wf": unix.MADV_WIPEONFORK,
	"mg": unix.MADV_MERGEABLE,
	"dd": unix.MADV_DONTDUMP,
	"rr": unix.MADV_RANDOM,
	"sr": unix.MADV_SEQUENTIAL,
}

// adviseVMA queues what comes after a VMA is filled: its final protection, its flags and its
// name. Its guards and its lock, which brings in pages that are missing, follow in feeder.guard.
func adviseVMA(b *ptrace.Batch, v *image.VMA) {
	if v.Kind == image.VMAVDSO || v.Kind == image.VMAVvar {
		return
	}
	if !protectFirst(v) {
		protect(b, v)
	}
	for _, f := range v.VMFlags {
		if a, ok := advices[f]; ok {
			advise(b, v, a)
		}
	}
	if name, ok := anonName(v.Name); ok {
		b.Call(unix.SYS_PRCTL, prSetVMA, prSetVMAName, v.Start, v.End-v.Start, b.Put(append([]byte(name), 0)).Addr()).
			Label(fmt.Sprintf("name the memory at %#x %q", v.Start, name))
	}
}

// anonName takes the name that PR_SET_VMA_ANON_NAME gave out of that which maps shows.
func anonName(shown string) (string, bool) {
	for _, prefix := range []string{"[anon:", "[anon_shmem:"} {
		if s, ok := strings.CutPrefix(shown, prefix); ok {
			return strings.CutSuffix(s, "]")
		}
	}
	return "", false
}

// fill writes the pages of an address space.
func (j *job) fill(ctx context.Context, p *proc, mm int) error {
	later, err := j.postpone(ctx, p, mm)
	if err != nil {
		return err
	}
	f := newFiller(p, j.r)
	defer f.close()
	var lots [][]piece
	for i := range j.m.MMs[mm].VMAs {
		v := &j.m.MMs[mm].VMAs[i]
		if len(v.Extents) > 0 && !later[i] && !p.has(v) {
			lots = pieces(lots, f.area(v), func(e int) int64 { return j.r.VMAOffset(mm, i, e) })
		}
	}
	if err := f.copy(ctx, lots); err != nil {
		return fmt.Errorf("restore pid %d: fill its memory: %w", p.pid, err)
	}
	return nil
}

// le is the byte order of an image and of the processes in it.
var le = binary.LittleEndian
