package kind

import (
	"fmt"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// signalFD is a signalfd(2). It holds nothing but a set of signals: what can be read from it are
// the pending signals of whoever reads.
type signalFD struct{}

type signalFDRec struct {
	Mask uint64 `cbor:"1,keyasint"` // bit n-1 is signal n
}

func (signalFD) Name() string { return "signalfd" }

func (signalFD) Match(f *Found) bool { return f.Link == "anon_inode:[signalfd]" }

func (signalFD) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	if f.Info.SigMask == nil {
		all = append(all, f.refuse("this kernel does not tell which signals it takes", "close it before the checkpoint"))
	}
	return all
}

func (signalFD) Dump(f *Found, s *Scene, rec *image.File) error {
	if f.Info.SigMask == nil {
		return fmt.Errorf("%s: its fdinfo tells no signals", f.Link)
	}
	return encodeRec(rec, &signalFDRec{Mask: *f.Info.SigMask})
}

func (signalFD) Open(rec *image.File, e *Env) (int, error) {
	var r signalFDRec
	if err := decodeRec(rec, &r); err != nil {
		return -1, err
	}
	none := -1
	fd, _, errno := unix.Syscall6(unix.SYS_SIGNALFD4, uintptr(none), uintptr(unsafe.Pointer(&r.Mask)), unsafe.Sizeof(r.Mask),
		unix.SFD_CLOEXEC|unix.SFD_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("signalfd4: %w", errno)
	}
	n, err := finished(int(fd), rec.Flags, 0, 0)
	if err != nil {
		return -1, fmt.Errorf("signalfd: %w", err)
	}
	return n, nil
}
