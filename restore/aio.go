package restore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// An AIO context cannot be made at a place of one's choice, but moved there: mremap(2) of its ring makes that its new
// address. Where in the ring the next event goes only the kernel knows: reads that end at once bring it there.

// aioChunk is how many requests are submitted at a time: fewer than any context has room for.
const aioChunk = 64

// checkAIO refuses rings that would come out otherwise here, and more requests than fs.aio-max-nr allows: io_setup(2) counts
// those of all contexts of the machine.
func (j *job) checkAIO() error {
	var rings []*image.VMA
	for i := range j.m.MMs {
		for k := range j.m.MMs[i].VMAs {
			if v := &j.m.MMs[i].VMAs[k]; v.AIO != nil {
				rings = append(rings, v)
			}
		}
	}
	if len(rings) == 0 {
		return nil
	}
	cpus, err := task.PossibleCPUs()
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	need := uint64(0)
	for _, v := range rings {
		if err := fitsHere(v, cpus); err != nil {
			return err
		}
		need += uint64(v.AIO.MaxReqs)
	}
	var have [2]uint64
	for i, name := range []string{"aio-nr", "aio-max-nr"} {
		b, err := quickread.File("/proc/sys/fs/" + name)
		if err != nil {
			return &HostError{What: "this kernel has no AIO (CONFIG_AIO), which the image needs", Remedy: "restore on another kernel", Err: err}
		}
		if have[i], err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return fmt.Errorf("restore: fs.%s: %w", name, err)
		}
	}
	if have[0]+need > have[1] {
		return &HostError{What: fmt.Sprintf("its AIO contexts are for %d requests, and of the %d that this machine allows %d are taken", need, have[1], have[0]),
			Remedy: fmt.Sprintf("allow more: sysctl fs.aio-max-nr=%d", have[0]+need)}
	}
	return nil
}

// fitsHere checks that a ring can be made here as it was.
func fitsHere(v *image.VMA, cpus int) error {
	room := image.AIORoom(v.End - v.Start)
	if have := roomHere(v.AIO.MaxReqs, cpus); have != room {
		return otherRing(have, room)
	}
	if n, most := v.AIO.Unread(room), fullHere(room, cpus); n > most {
		return &HostError{What: fmt.Sprintf("an AIO ring has %d events that nobody has read, and here only %d can be brought into it: that depends on the number of CPUs", n, most),
			Remedy: "restore on a machine with as many"}
	}
	return nil
}

// makeAIO makes the AIO contexts of a process.
func (j *job) makeAIO(ctx context.Context, p *proc, mm *image.MM) error {
	for i := range mm.VMAs {
		v := &mm.VMAs[i]
		if v.Kind != image.VMAAIO {
			continue
		}
		if err := j.makeContext(ctx, p, v); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) makeContext(ctx context.Context, p *proc, v *image.VMA) error {
	fail := func(err error) error {
		return fmt.Errorf("restore pid %d: its AIO context at %#x for %d requests: %w", p.pid, v.Start, v.AIO.MaxReqs, err)
	}
	size := v.End - v.Start
	// The kernel must not choose a place that overlaps the one to which it goes.
	if _, err := p.call("mmap", unix.SYS_MMAP, v.Start, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE|unix.MAP_NORESERVE, ^uint64(0), 0); err != nil {
		return fail(err)
	}
	at, err := j.put(p, 0, make([]byte, 8))
	if err != nil {
		return err
	}
	if _, err := p.call("io_setup", unix.SYS_IO_SETUP, uint64(v.AIO.MaxReqs), at); errors.Is(err, unix.EAGAIN) {
		return fail(&HostError{What: "there may be no more requests on this machine", Remedy: "raise fs.aio-max-nr (sysctl)", Err: err})
	} else if err != nil {
		return fail(err)
	}
	var b [8]byte
	if _, err := p.rem.Mem().ReadAt(b[:], int64(at)); err != nil {
		return fail(err)
	}
	made := le.Uint64(b[:])
	room, err := ringWord(p, made, 4)
	if err != nil {
		return fail(err)
	}
	if want := image.AIORoom(size); room != want {
		return fail(otherRing(room, want))
	}
	if _, err := p.call("mremap", unix.SYS_MREMAP, made, size, size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, v.Start); err != nil {
		return fail(err)
	}
	if err := onOneCPU(p.pid, func() error { return j.advance(ctx, p, v, room) }); err != nil {
		return fail(err)
	}
	if v.Prot != unix.PROT_READ|unix.PROT_WRITE {
		if _, err := p.call("mprotect", unix.SYS_MPROTECT, v.Start, size, uint64(v.Prot)); err != nil {
			return fail(err)
		}
	}
	return nil
}

// otherRing says that a ring has room for another number of events than it had.
func otherRing(have, want uint32) error {
	return &HostError{What: fmt.Sprintf("an AIO ring has %d events here and had %d: that depends on the number of CPUs", have, want),
		Remedy: "restore on a machine with as many"}
}

// roomHere is how many events a ring has that io_setup(2) makes for so many requests where there can be so many CPUs: twice
// as many, but at least eight for a CPU, in whole pages (fs/aio.c).
func roomHere(requests uint32, cpus int) uint32 {
	n := max(uint64(requests), 4*uint64(cpus))*2 + 2
	bytes := image.AIORingHead + n*image.AIOEventSize
	return image.AIORoom((bytes + pageSize - 1) / pageSize * pageSize)
}

// fullHere is how many events one CPU can bring into a ring of that room before any is read: it takes slots by the batch.
func fullHere(room uint32, cpus int) uint32 {
	batch := max((room-1)/uint32(4*cpus), 1)
	return (room - 1) / batch * batch
}

// onOneCPU runs f while a stub stays on one CPU. Each CPU that it submits on keeps free slots of the context to itself, and a
// ring that is nearly full has none to spare.
func onOneCPU(pid int, f func() error) error {
	var was, one unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &was); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for cpu := range 64 * len(was) {
		if was.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(pid, &one); err != nil {
		return fmt.Errorf("sched_setaffinity: %w", err)
	}
	err := f()
	if e := unix.SchedSetaffinity(pid, &was); e != nil {
		err = errors.Join(err, fmt.Errorf("sched_setaffinity: %w", e))
	}
	return err
}

// advance brings head and tail of a ring to where they were, and writes the events that nobody has read.
func (j *job) advance(ctx context.Context, p *proc, v *image.VMA, room uint32) error {
	a := v.AIO
	if a.Tail == 0 && a.Head == 0 {
		return nil
	}
	const iocbLen = 64 // struct iocb of linux/aio_abi.h
	path, err := j.put(p, 0, []byte("/dev/null\x00"))
	if err != nil {
		return err
	}
	cwd := unix.AT_FDCWD
	fd, err := p.call("open /dev/null", unix.SYS_OPENAT, uint64(cwd), path, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	iocb := make([]byte, iocbLen) // IOCB_CMD_PREAD, which is 0, of nothing
	le.PutUint32(iocb[20:], uint32(fd))
	list := make([]byte, 8*aioChunk)
	for i := range aioChunk {
		le.PutUint64(list[8*i:], j.hole.data())
	}
	if _, err := j.put(p, 0, append(iocb, list...)); err != nil {
		return err
	}
	// Up to head each is as good as read. From there on they wait, if head is behind tail by way of the end of the
	// ring too.
	tail := uint32(0)
	submit := func(n uint32, read bool) error {
		for n > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			k := min(n, aioChunk)
			did, err := p.call("io_submit", unix.SYS_IO_SUBMIT, v.Start, uint64(k), j.hole.data()+iocbLen)
			if err != nil {
				return err
			}
			n, tail = n-uint32(did), (tail+uint32(did))%room
			if read {
				if err := writeRing(p, v.Start+8, le.AppendUint32(nil, tail)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := submit(a.Head, true); err != nil {
		return err
	}
	if err := submit(a.Unread(room), false); err != nil {
		return err
	}
	if got, err := ringWord(p, v.Start, 12); err != nil || got != a.Tail {
		return errors.Join(err, fmt.Errorf("its tail came to %d, not to %d", got, a.Tail))
	}
	for i := range a.Unread(room) {
		at := v.Start + image.AIORingHead + uint64((a.Head+i)%room)*image.AIOEventSize
		if err := writeRing(p, at, a.Events[i*image.AIOEventSize:][:image.AIOEventSize]); err != nil {
			return err
		}
	}
	_, err = p.call("close", unix.SYS_CLOSE, fd)
	return err
}

// ringWord reads a word of struct aio_ring.
func ringWord(p *proc, ring, off uint64) (uint32, error) {
	var b [4]byte
	_, err := p.rem.Mem().ReadAt(b[:], int64(ring+off))
	return le.Uint32(b[:]), err
}

func writeRing(p *proc, at uint64, b []byte) error {
	_, err := p.rem.Mem().WriteAt(b, int64(at))
	return err
}
