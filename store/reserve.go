package store

import (
	"os"
	"path/filepath"

	"github.com/ckptfs/ckptfs/store/disk"
	"golang.org/x/sys/unix"
)

// To free space takes space: before GC or Prune can tell what is garbage they write what memory
// knows into the index. So a store in a folder keeps some blocks of the disk back, in a file
// that has no bytes, and gives them up when the disk is full.
const (
	reserveName = "reserve"
	reserveMost = 8 << 20 // bytes: an index run of 150,000 chunks
	reservePart = 64      // and not more than this part of the disk
)

// keepReserve takes the reserve, if the disk has room. A filesystem without fallocate(2) has
// none.
func (s *Store) keepReserve() {
	var fs unix.Statfs_t
	if s.sh != nil || unix.Statfs(s.dir, &fs) != nil {
		return
	}
	n := min(reserveMost, int64(fs.Blocks)*fs.Bsize/reservePart)
	f, err := os.OpenFile(filepath.Join(s.dir, reserveName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return // the next one who frees something tries again
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) == nil && st.Blocks*512 >= n {
		return
	}
	if unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n) != nil {
		os.Remove(f.Name()) // what a part of it takes others need
	}
}

// useReserve gives the reserve up if err says that the disk is full, and reports whether that
// may help. Called with maint held.
func (s *Store) useReserve(err error) bool {
	if !disk.IsFull(err) || s.sh != nil {
		return false
	}
	if os.Remove(filepath.Join(s.dir, reserveName)) != nil {
		return false
	}
	s.o.Log("store " + s.dir + ": the disk is full; using the reserve")
	return true
}
