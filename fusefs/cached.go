package fusefs

import (
	"fmt"
	"os"
	"strings"

	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Stored images never change, so the kernel may keep what it has read of them. But to put it there makes a read slower by
// a third, and most images are read once. So an image is first read past the page cache; one that was read to its end and
// is opened again goes through it, and from then on is read from memory as long as that has room.

// readAheadKiB is how far the kernel reads ahead of who reads through the page cache; its default of 128 makes it four times
// slower.
const readAheadKiB = blockSize >> 10

// openFlags says how an image is to be read. Another one may have got the name, by another machine where the store is in a bucket: what
// is in the page cache is not of that one, so its file gets another inode number.
func (s *savedNames) openFlags(im *store.Image) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.get(im.Name)
	if !e.created.IsZero() && !e.created.Equal(im.Created) {
		delete(s.byName, im.Name)
		e = s.get(im.Name)
	}
	e.created = im.Created
	if e.read {
		return fuse.FOPEN_KEEP_CACHE
	}
	return fuse.FOPEN_DIRECT_IO
}

// wasRead notes that an image was read to its end.
func (s *savedNames) wasRead(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byName[name]; e != nil { // it may have been removed meanwhile
		e.read = true
	}
}

// readSome notes that a reader was given the bytes from off to end.
func (h *savedHandle) readSome(off, end int64) {
	if at := h.readTo.Load(); off > at || end <= at || !h.readTo.CompareAndSwap(at, end) || end < h.r.Size() {
		return
	}
	h.dir.mu.Lock()
	name := h.dir.name
	h.dir.mu.Unlock()
	h.f.saved.wasRead(name)
}

// widenReadAhead sets how far the kernel reads ahead in the mount on dir.
func widenReadAhead(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	dev := mountDevice(string(info), dir)
	if dev == "" {
		return fmt.Errorf("%s is not in /proc/self/mountinfo", dir)
	}
	return os.WriteFile("/sys/class/bdi/"+dev+"/read_ahead_kb", fmt.Append(nil, readAheadKiB), 0)
}

// mountDevice finds the device of the mount on dir, MAJOR:MINOR, in the text of a mountinfo, see proc(5); "" if there is
// none. The last one hides those before it.
func mountDevice(info, dir string) (dev string) {
	dir = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	for line := range strings.Lines(info) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == dir {
			dev = f[2]
		}
	}
	return dev
}
