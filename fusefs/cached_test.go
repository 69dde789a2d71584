package fusefs

import (
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func TestMountDevice(t *testing.T) {
	const info = `22 1 254:0 / / rw - ext4 /dev/vda rw
51 22 0:40 / /mnt/a\040b rw - fuse.ckptfs /store rw
52 22 0:41 / /mnt rw - fuse.ckptfs /store rw
53 22 0:42 / /mnt rw - fuse.ckptfs /store rw
54 22 0:43
`
	for dir, want := range map[string]string{"/mnt": "0:42", "/mnt/a b": "0:40", "/": "254:0", "/mnt/a": ""} {
		if got := mountDevice(info, dir); got != want {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
}

// TestOpenFlags: an image that was read to its end goes through the page cache from then on, also under another name; one
// that takes its name does not.
func TestOpenFlags(t *testing.T) {
	s := savedNames{byName: map[string]*savedName{}}
	created := time.Now()
	check := func(name string, want uint32) {
		t.Helper()
		if got := s.openFlags(&store.Image{Name: name, Created: created}); got != want {
			t.Errorf("%s is opened with %#x, want %#x", name, got, want)
		}
	}
	check("a", fuse.FOPEN_DIRECT_IO)
	s.wasRead("a")
	s.wasRead("gone")
	check("a", fuse.FOPEN_KEEP_CACHE)
	s.rename("a", "b")
	check("b", fuse.FOPEN_KEEP_CACHE)
	check("a", fuse.FOPEN_DIRECT_IO)
	s.forget("b")
	check("b", fuse.FOPEN_DIRECT_IO)
	s.wasRead("b")
	check("b", fuse.FOPEN_KEEP_CACHE)
	id := s.id("b")
	created = created.Add(time.Second) // another machine has removed b and stored another image as b
	check("b", fuse.FOPEN_DIRECT_IO)
	if s.id("b") == id {
		t.Error("another image of the same name has the same inode number")
	}
}
