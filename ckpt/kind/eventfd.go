package kind

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// eventFD is an eventfd(2). Its count is read from fdinfo, never from the file.
type eventFD struct{}

type eventFDRec struct {
	Count     uint64 `cbor:"1,keyasint"`
	Semaphore bool   `cbor:"2,keyasint"`
}

func (eventFD) Name() string { return "eventfd" }

func (eventFD) Match(f *Found) bool { return f.Link == "anon_inode:[eventfd]" }

func (eventFD) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	switch ev := f.Info.EventFD; {
	case ev == nil || !ev.HasSemaphore:
		all = append(all, f.refuse("this kernel does not tell whether it counts as a semaphore (EFD_SEMAPHORE)", "use a kernel of version 6.5 or later"))
	case ev.Count == math.MaxUint64:
		all = append(all, f.refuse("its count has overflowed, which cannot be made again", "read it first"))
	}
	return all
}

func (eventFD) Dump(f *Found, s *Scene, rec *image.File) error {
	ev := f.Info.EventFD
	if ev == nil || !ev.HasSemaphore {
		return fmt.Errorf("%s: its fdinfo tells no count or no mode", f.Link)
	}
	return encodeRec(rec, &eventFDRec{Count: ev.Count, Semaphore: ev.Semaphore})
}

// Independent is Independent.Independent.
func (eventFD) Independent(*image.File) bool { return true }

func (eventFD) Open(rec *image.File, e *Env) (int, error) {
	var r eventFDRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	flags := unix.EFD_CLOEXEC | unix.EFD_NONBLOCK
	if r.Semaphore {
		flags |= unix.EFD_SEMAPHORE
	}
	fd, err := unix.Eventfd(0, flags)
	if err != nil {
		return -1, fmt.Errorf("eventfd2: %w", err)
	}
	if r.Count > 0 {
		if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, r.Count)); err != nil {
			unix.Close(fd) // never used
			return -1, fmt.Errorf("eventfd: setting its count to %d: %w", r.Count, err)
		}
	}
	fd, err = finished(fd, rec.Flags, 0, 0)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	return fd, nil
}
