package kind

import (
	"fmt"
	"path/filepath"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// A regular file that was deleted while open lives in the image: its data as one blob (a large one,
// or one that is mapped, as a segment, see gonefile.go), its holes not at all. Every open file description of it has a record; the first of them in the
// tree has the blob. The restore makes the file under its old name, or under none if
// that is taken, unlinks it at once and opens it anew for each further record.

// carried is what a restore needs to make a deleted file again.
type carried struct {
	UID     uint32            `cbor:"1,keyasint"`
	GID     uint32            `cbor:"2,keyasint"`
	ATime   int64             `cbor:"3,keyasint"`           // Unix ns
	Extents []dataRun         `cbor:"4,keyasint,omitempty"` // ascending; the blob holds them back to back
	XAttrs  map[string][]byte `cbor:"5,keyasint,omitempty"` // user.*
	First   bool              `cbor:"6,keyasint,omitempty"` // this record has the blob and the extents
}

// dataRun is a run of a sparse file that is not a hole, in bytes.
type dataRun struct {
	Off int64 `cbor:"1,keyasint"`
	Len int64 `cbor:"2,keyasint"`
}

// maxCarried bounds, in bytes, what is carried as a blob, which is in memory as a whole. Larger files are
// segments, which are streamed.
const maxCarried = 64 << 20

// streams reports whether a deleted file goes into the image as a segment.
func streams(f *Found, s *Scene) (bool, error) {
	if s.mapped(f) {
		return true, nil
	}
	if f.Stat.Size <= maxCarried { // only then is it worth asking how much of it is holes
		return false, nil
	}
	_, n, err := dataRuns(f)
	return n > maxCarried, err
}

// carryFindings refuses deleted files that the image cannot hold.
func carryFindings(f *Found, s *Scene) []image.Finding {
	switch dev, err := shmDev(); {
	case err != nil:
		return []image.Finding{f.refuse("cannot tell whether it is a file or shared memory: "+err.Error(), "close it before the checkpoint")}
	case dev == f.Stat.Dev || fsType(f) == unix.HUGETLBFS_MAGIC:
		return []image.Finding{f.refuse("it is shared memory opened as a file, and would no longer be the same memory", "close it before the checkpoint")}
	}
	var all []image.Finding
	if _, err := userXAttrs(f.FD); err != nil {
		all = append(all, f.refuse("it was deleted while open, and "+err.Error(), "remove the attribute, or close it before the checkpoint"))
	}
	for _, access := range [...]int{unix.O_RDONLY, unix.O_WRONLY} {
		if pid := s.Outside(f.Stat.Dev, f.Stat.Ino, access); pid != 0 {
			return append(all, f.lose(fmt.Sprintf("it was deleted while open, and pid %d outside the tree has it open too: the restored tree gets a copy of its own", pid),
				"checkpoint a tree that holds both, or give the file a name"))
		}
	}
	return all
}

// carry describes a deleted file, and puts its data into the image if f comes first of
// all open file descriptions of it.
func carry(f *Found, s *Scene, rec *image.File) (*carried, error) {
	c := &carried{UID: f.Stat.Uid, GID: f.Stat.Gid, ATime: f.Stat.Atim.Nano(), First: first(f, s) == f}
	if !c.First {
		return c, nil
	}
	var err error
	if c.XAttrs, err = userXAttrs(f.FD); err != nil {
		return nil, err
	}
	runs, n, err := dataRuns(f)
	if err != nil {
		return nil, err
	}
	data, err := readRuns(f, runs, n)
	if err != nil {
		return nil, err
	}
	c.Extents = runs
	if len(data) > 0 {
		rec.Blob = s.Blob(data)
	}
	return c, nil
}

// first returns the first of the tree's open file descriptions of the inode of f.
func first(f *Found, s *Scene) *Found {
	if all := s.sharing(f); len(all) > 0 {
		return all[0]
	}
	return f
}

// openCarried makes the deleted file of rec, or opens it anew if another record of
// it came first.
func openCarried(rec *image.File, r *regularRec, e *Env) (int, error) {
	fresh := -1
	g, err := shared(e, inodeKey("deleted file", r.Dev, r.Ino), func() (*ghost, error) {
		var err error
		var g *ghost
		g, fresh, err = makeGhost(rec, r, e)
		return g, err
	})
	fd := fresh
	if err == nil && fd < 0 {
		fd, err = reopen(g.fd, openFlags(rec.Flags))
	}
	if err == nil {
		fd, err = finished(fd, rec.Flags, lookupOnly, rec.Pos)
	}
	if err != nil {
		return -1, fmt.Errorf("deleted file %s: %w", rec.Path, err)
	}
	setWriteHint(fd, r.Hint, rec.Path, e)
	return fd, nil
}

// ghost is a deleted file while the records of it are being opened.
type ghost struct {
	fd    int // open for reading and writing
	mode  uint32
	times [2]unix.Timespec
}

// Close gives the file the mode and times that it must not have before it is filled and
// opened for the last time.
func (g *ghost) Close() error {
	defer unix.Close(g.fd) // its data is in descriptors that live on
	if err := unix.Fchmod(g.fd, g.mode&07777); err != nil {
		return fmt.Errorf("mode of a deleted file: %w", err)
	}
	if err := unix.UtimesNanoAt(g.fd, "", g.times[:], unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("times of a deleted file: %w", err)
	}
	return nil
}

// makeGhost creates and fills the file; fresh is the descriptor for rec.
func makeGhost(rec *image.File, r *regularRec, e *Env) (g *ghost, fresh int, err error) {
	dir, err := placeFor(rec.Path, e)
	if err != nil {
		return nil, -1, err
	}
	if fresh, err = createUnnamed(rec, dir); err != nil {
		return nil, -1, err
	}
	fd, err := reopen(fresh, unix.O_RDWR)
	if err == nil {
		if err = fillGhost(fd, rec, r, e); err != nil {
			unix.Close(fd) // never used
		}
	}
	if err != nil {
		unix.Close(fresh) // never used
		return nil, -1, err
	}
	times := [2]unix.Timespec{unix.NsecToTimespec(r.Carried.ATime), unix.NsecToTimespec(r.MTime)}
	return &ghost{fd: fd, mode: r.Mode, times: times}, fresh, nil
}

// createUnnamed makes an empty file without a name in dir, opened with the flags of rec.
func createUnnamed(rec *image.File, dir string) (int, error) {
	flags := openFlags(rec.Flags)
	if rec.Flags&tmpFile != 0 {
		return unix.Open(dir, flags|unix.O_TMPFILE, 0o600)
	}
	fd := -1
	name, err := underFreeName(dir, filepath.Base(rec.Path), func(name string) (err error) {
		fd, err = unix.Open(name, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return -1, err
	}
	if err := unix.Unlink(name); err != nil {
		unix.Close(fd) // never used
		return -1, fmt.Errorf("unlinking it again: %w", err)
	}
	return fd, nil
}

// fillGhost puts the carried data, owner and attributes into the new file fd.
func fillGhost(fd int, rec *image.File, r *regularRec, e *Env) error {
	src, err := carrier(rec, r, e)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, r.Size); err != nil {
		return fmt.Errorf("setting its size to %d: %w", r.Size, err)
	}
	for _, x := range src.runs {
		if x.Len < 0 || x.Len > int64(len(src.data)) || x.Off < 0 || x.Off > r.Size-x.Len {
			return fmt.Errorf("the image describes %d bytes at %d, which it does not hold", x.Len, x.Off)
		}
		if err := pwriteFull(fd, src.data[:x.Len], x.Off); err != nil {
			return err
		}
		src.data = src.data[x.Len:]
	}
	for name, value := range src.xattrs {
		if err := unix.Fsetxattr(fd, name, value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return giveTo(fd, r.Carried.UID, r.Carried.GID)
}

// cargo is the content of a deleted file as the image holds it.
type cargo struct {
	runs   []dataRun
	data   []byte
	xattrs map[string][]byte
}

// carrier finds the record that holds the content of the deleted file r.
func carrier(rec *image.File, r *regularRec, e *Env) (*cargo, error) {
	for i := range e.Manifest.Files {
		g := &e.Manifest.Files[i]
		if g.Kind != rec.Kind || g.Path != rec.Path {
			continue
		}
		var gr regularRec
		if err := decodeRec(g, &gr); err != nil {
			return nil, err
		}
		if gr.Carried == nil || !gr.Carried.First || gr.Dev != r.Dev || gr.Ino != r.Ino {
			continue
		}
		c := &cargo{runs: gr.Carried.Extents, xattrs: gr.Carried.XAttrs}
		if g.Blob == 0 {
			return c, nil
		}
		var err error
		c.data, err = e.Blob(g.Blob)
		return c, err
	}
	return nil, fmt.Errorf("the image does not hold its content")
}

// giveTo sets the owner of fd if it has another one.
func giveTo(fd int, uid, gid uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Uid == uid && st.Gid == gid {
		return nil
	}
	if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
		return fmt.Errorf("it belonged to uid %d gid %d, and cannot be given to them: %w", uid, gid, err)
	}
	return nil
}
