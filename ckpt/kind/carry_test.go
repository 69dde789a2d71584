package kind

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// ghostFile makes a file with a hole, an attribute and content, opens it and deletes it.
func ghostFile(t *testing.T, path string, flags int) int {
	t.Helper()
	file(t, path, "head")
	must(t, os.Truncate(path, 1<<20))
	w := open(t, path, unix.O_WRONLY)
	_, err := unix.Pwrite(w, []byte("middle"), 512<<10)
	must(t, err)
	must(t, unix.Setxattr(path, "user.colour", []byte("blue"), 0))
	must(t, os.Chmod(path, 0o440))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 1e9, Nsec: 2}}, 0))
	fd := open(t, path, flags)
	must(t, os.Remove(path))
	return fd
}

func content(t *testing.T, fd int) []byte {
	t.Helper()
	r, err := reopen(fd, unix.O_RDONLY)
	must(t, err)
	defer unix.Close(r)
	var st unix.Stat_t
	must(t, unix.Fstat(r, &st))
	b := make([]byte, st.Size)
	must(t, preadFull(r, b, 0))
	return b
}

func TestCarried(t *testing.T) {
	for name, flags := range map[string]int{
		"readonly": unix.O_RDONLY, "writeonly": unix.O_WRONLY | unix.O_NOFOLLOW, "append": unix.O_RDWR | unix.O_APPEND,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			fd := ghostFile(t, path, flags)
			_, err := unix.Seek(fd, 3, unix.SEEK_SET)
			must(t, err)
			s, got := roundTrip(t, fd)
			if !bytes.Equal(content(t, fd), content(t, got[0])) {
				t.Error("the content is another")
			}
			if n := len(s.blobs[0]); n > 64<<10 {
				t.Errorf("%d bytes in the image: the hole is carried too", n)
			}
			var a, b unix.Stat_t
			must(t, unix.Fstat(fd, &a))
			must(t, unix.Fstat(got[0], &b))
			if a.Mtim != b.Mtim || a.Blocks != b.Blocks || b.Nlink != 0 {
				t.Errorf("was %+v, is %+v", a, b)
			}
			value := make([]byte, 9)
			if n, err := unix.Fgetxattr(got[0], "user.colour", value); err != nil || string(value[:max(n, 0)]) != "blue" {
				t.Errorf("attribute %q: %v", value, err)
			}
			if link, err := os.Readlink("/proc/self/fd/" + itoa(got[0])); err != nil || link != path+" (deleted)" {
				t.Errorf("link %q: %v", link, err)
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(entries) != 0 {
				t.Errorf("left behind: %v %v", entries, err)
			}
		})
	}
}

// TestCarriedTwice: two open file descriptions of one deleted file are of one file again.
func TestCarriedTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	file(t, path, "0123456789")
	a, b := open(t, path, unix.O_RDWR), open(t, path, unix.O_RDONLY)
	must(t, os.Remove(path))
	_, err := unix.Seek(b, 7, unix.SEEK_SET)
	must(t, err)
	s, got := roundTrip(t, a, b)
	if len(s.blobs) != 1 {
		t.Errorf("%d blobs", len(s.blobs))
	}
	_, err = unix.Write(got[0], []byte("shared mem"))
	must(t, err)
	rest := make([]byte, 9)
	if n, err := unix.Read(got[1], rest); err != nil || string(rest[:n]) != "mem" {
		t.Errorf("read %q %v", rest[:max(n, 0)], err)
	}
}

func TestCarriedNameTaken(t *testing.T) {
	dir := t.TempDir()
	fd := ghostFile(t, filepath.Join(dir, "f"), unix.O_RDWR)
	file(t, filepath.Join(dir, "f"), "somebody else's")
	_, got := roundTrip(t, fd)
	if !bytes.Equal(content(t, fd), content(t, got[0])) {
		t.Error("the content is another")
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "somebody else's" {
		t.Errorf("the file that took the name now has %q: %v", b, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

func TestCarriedTmpfile(t *testing.T) {
	fd, err := unix.Open(t.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("no name ever"))
	must(t, err)
	_, got := roundTrip(t, fd)
	if string(content(t, got[0])) != "no name ever" {
		t.Errorf("content %q", content(t, got[0]))
	}
}

func TestCarriedEmpty(t *testing.T) {
	path := file(t, filepath.Join(t.TempDir(), "f"), "")
	fd := open(t, path, unix.O_RDWR)
	must(t, os.Remove(path))
	s, _ := roundTrip(t, fd)
	if len(s.blobs) != 0 {
		t.Errorf("%d blobs for an empty file", len(s.blobs))
	}
}

func TestCarriedRefusals(t *testing.T) {
	dir := t.TempDir()
	big := open(t, file(t, filepath.Join(dir, "big"), "x"), unix.O_RDWR)
	must(t, os.Remove(filepath.Join(dir, "big")))
	s := newStage(t)
	f := s.add(big)[0]
	runs, n, err := dataRuns(f)
	if err != nil || n != 1 || !slices.Equal(runs, []dataRun{{0, 1}}) {
		t.Fatalf("data %v %d %v", runs, n, err)
	}
	s.outside[unix.O_RDONLY] = 4321
	wantFinding(t, s.check(), image.Lose, "pid 4321 outside the tree has it open too")

	attr := open(t, file(t, filepath.Join(dir, "attr"), "x"), unix.O_RDWR)
	must(t, unix.Fsetxattr(attr, "trusted.key", []byte("x"), 0))
	must(t, os.Remove(filepath.Join(dir, "attr")))
	s = newStage(t)
	s.add(attr)
	refused(t, s.check(), "was deleted while open", "trusted.key cannot be carried")

	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	must(t, err)
	defer unix.Munmap(mem)
	s = newStage(t)
	s.add(open(t, mapFile(t, mem), unix.O_RDWR))
	refused(t, s.check(), "shared memory opened as a file")
}

// TestCarriedSparse: what counts is data, not length.
func TestCarriedSparse(t *testing.T) {
	path := file(t, filepath.Join(t.TempDir(), "f"), "x")
	must(t, os.Truncate(path, 100*maxCarried))
	fd := open(t, path, unix.O_RDWR)
	must(t, os.Remove(path))
	roundTrip(t, fd)
}

// TestCarriedOverlay: an overlay shows a link count for a deleted file of the layer below.
func TestCarriedOverlay(t *testing.T) {
	dir := t.TempDir()
	var layers []string
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		layers = append(layers, filepath.Join(dir, name))
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	file(t, filepath.Join(layers[0], "f"), "from below")
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", layers[0], layers[1], layers[2])
	if err := unix.Mount("overlay", layers[3], "overlay", 0, opts); err != nil {
		t.Logf("no overlay can be mounted on the temporary folder: %v", err)
		return
	}
	defer unix.Unmount(layers[3], unix.MNT_DETACH)
	path := filepath.Join(layers[3], "f")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, os.Remove(path))
	s := newStage(t)
	s.add(fd)
	must(t, image.Refusals(s.check()))
	s.dump()
	got, err := s.open()
	must(t, err)
	if string(content(t, got[0])) != "from below" {
		t.Errorf("content %q", content(t, got[0]))
	}
	unix.Close(got[0]) // before the mount goes
}

// TestCarriedHostile: an image that describes more data than it holds.
func TestCarriedHostile(t *testing.T) {
	for _, runs := range [][]dataRun{{{0, 5}}, {{-1, 2}}, {{0, -1}}, {{9, 2}}, {{0, 1 << 62}}} {
		s := newStage(t)
		dir := t.TempDir()
		s.blobs = [][]byte{[]byte("abcd")}
		rec := image.File{Kind: "file", Path: filepath.Join(dir, "f"), Flags: unix.O_RDWR | largeFile, Blob: 1}
		must(t, encodeRec(&rec, &regularRec{identity: identity{Mode: unix.S_IFREG, Size: 10}, Carried: &carried{Extents: runs, First: true}}))
		s.env.Manifest.Files = []image.File{rec}
		if fd, err := (regular{}).Open(&rec, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("extents %v accepted", runs)
		} else {
			wantWords(t, err.Error(), "which it does not hold")
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("left behind: %v %v", entries, err)
		}
	}
}

// mapFile is the path in map_files of a mapping of ours.
func mapFile(t *testing.T, mem []byte) string {
	t.Helper()
	start := uintptr(unsafe.Pointer(&mem[0]))
	return fmt.Sprintf("/proc/self/map_files/%x-%x", start, start+uintptr(len(mem)))
}
