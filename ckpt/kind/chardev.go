package kind

import (
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// charDev is a character device without any state of its own: null, zero, full, random and
// urandom, see null(4), full(4) and random(4); and kmsg opened for writing only, where every
// write is a line of the kernel's log. Who reads from kmsg has a place in that log, which
// cannot be asked for.
type charDev struct{}

// devKmsg is /dev/kmsg (Documentation/ABI/testing/dev-kmsg).
var devKmsg = unix.Mkdev(1, 11)

func (charDev) Name() string { return "chardev" }

func (charDev) Match(f *Found) bool {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFCHR || f.Flags&unix.O_PATH != 0 || !strings.HasPrefix(f.Link, "/") {
		return false
	}
	switch f.Stat.Rdev {
	case unix.Mkdev(1, 3), unix.Mkdev(1, 5), unix.Mkdev(1, 7), unix.Mkdev(1, 8), unix.Mkdev(1, 9):
		return true
	case devKmsg:
		return !readable(f.Flags)
	}
	return false
}

// Independent is Independent.Independent.
func (charDev) Independent(*image.File) bool { return true }

func (charDev) Check(f *Found, s *Scene) []image.Finding { return checkByPath(f, s, "device file") }

func (charDev) Dump(f *Found, s *Scene, rec *image.File) error {
	rec.Path, _ = locate(f, s)
	return encodeIdentity(rec, identify(&f.Stat))
}

func (c charDev) Open(rec *image.File, e *Env) (int, error) { return openByPath(rec, e, c.judge) }

func (c charDev) CheckOpen(rec *image.File, e *Env) (string, error) {
	return checkOpenByPath(rec, e, c.judge)
}

// judge has nothing to add: the device numbers were compared, and the inode of a device file
// is another one after every start of the machine.
func (charDev) judge(*image.File, *identity, *unix.Stat_t, rigor) (string, error) { return "", nil }
