package restore

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// An AIO context cannot be made at a place of one's choice, but moved there: mremap(2) of its ring makes that its new
// address. Where in the ring the next event goes only the kernel knows: reads that end at once bring it there.

// aioChunk is how many requests are submitted at a time: fewer than any context has room for.
const aioChunk = 64

// checkAIO refuses more requests than fs.aio-max-nr allows: io_setup(2) counts those of all contexts of the machine.
func (j *job) checkAIO() error {
	need := uint64(0)
	for i := range j.m.MMs {
		for k := range j.m.MMs[i].VMAs {
			if a := j.m.MMs[i].VMAs[k].AIO; a != nil {
				need += uint64(a.MaxReqs)
			}
		}
	}
	if need == 0 {
		return nil
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

// makeAIO makes the AIO contexts of a process.
func (j *job) makeAIO(p *proc, mm *image.MM) error {
	for i := range mm.VMAs {
		v := &mm.VMAs[i]
		if v.Kind != image.VMAAIO {
			continue
		}
		if err := j.makeContext(p, v); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) makeContext(p *proc, v *image.VMA) error {
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
	ctx := le.Uint64(b[:])
	room, err := ringWord(p, ctx, 4)
	if err != nil {
		return fail(err)
	}
	if want := v.AIO.Room(v.End - v.Start); room != want {
		return fail(&HostError{What: fmt.Sprintf("its ring has %d events here and had %d: that depends on the number of CPUs", room, want),
			Remedy: "restore on a machine with as many"})
	}
	if _, err := p.call("mremap", unix.SYS_MREMAP, ctx, size, size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, v.Start); err != nil {
		return fail(err)
	}
	if err := onOneCPU(p.pid, func() error { return j.advance(p, v, room) }); err != nil {
		return fail(err)
	}
	return nil
}

// onOneCPU runs f while a stub stays on one CPU. Each CPU that it submits on keeps free slots of the context to itself, and a
// ring that is nearly full has none to spare.
func onOneCPU(pid int, f func() error) error {
	var was, one unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &was); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for cpu := range 8 * len(was) * 8 {
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
func (j *job) advance(p *proc, v *image.VMA, room uint32) error {
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
