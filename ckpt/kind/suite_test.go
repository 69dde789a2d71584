package kind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"
)

// The conformance suite. A test makes descriptors in some state; roundTrip takes them
// through everything that happens to the files of a tree, and reports what came out unlike.

// stage is a tree whose only process is the test itself.
type stage struct {
	noisy   bool // others change the live files meanwhile
	t       *testing.T
	scene   *Scene
	env     *Env
	blobs   [][]byte
	outside map[int]int // access -> pid
	segment int         // descriptor of the memory of memfds
	warned  []string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, outside: map[int]int{}, segment: -1}
	s.scene = &Scene{
		Root:    "/",
		Outside: func(_, _ uint64, access int) int { return s.outside[access] },
		Blob: func(b []byte) image.ObjRef {
			s.blobs = append(s.blobs, slices.Clone(b))
			return image.ObjRef(len(s.blobs))
		},
		Segment: func(*Found) (image.ObjRef, error) { return 1, nil },
		Member:  func(id int) bool { return id == os.Getpid() },
	}
	out := filepath.Join(t.TempDir(), "NAME.out")
	s.env = &Env{
		Manifest: &image.Manifest{Tasks: []image.Task{{PID: int32(os.Getpid()), State: image.TaskRunning}}},
		Blob:     func(r image.ObjRef) ([]byte, error) { return s.blobs[r-1], nil },
		Segment:  func(image.ObjRef) (int, error) { return s.segment, nil },
		Out: func() (int, error) {
			return unix.Open(out, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
		},
		In:     func(pid int, f func(Process) error) error { return f(&self{pid: int32(os.Getpid())}) },
		Help:   true,
		Warn:   func(f string, a ...any) { s.warned = append(s.warned, fmt.Sprintf(f, a...)) },
		Shared: map[string]any{},
	}
	t.Cleanup(func() { s.closeShared() })
	return s
}

// closeShared does what a restore does when every file is open.
func (s *stage) closeShared() error {
	var errs []error
	for _, v := range s.env.Shared {
		if c, ok := v.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	clear(s.env.Shared)
	return errors.Join(errs...)
}

// output is what went to NAME.out.
func (s *stage) output() string {
	s.t.Helper()
	fd, err := s.env.Out()
	must(s.t, err)
	defer unix.Close(fd)
	b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(fd))
	must(s.t, err)
	return string(b)
}

// add describes descriptors of ours as the driver describes those of a process.
func (s *stage) add(fds ...int) []*Found {
	s.t.Helper()
	var all []*Found
	for _, fd := range fds {
		f := &Found{FD: fd, Slots: []Slot{{PID: int32(os.Getpid()), Num: int32(fd)}}}
		num := strconv.Itoa(fd)
		var err error
		f.Link, err = os.Readlink("/proc/self/fd/" + num)
		must(s.t, err)
		f.Info, err = procfs.ParseFDInfo(fdinfo(s.t, fd))
		must(s.t, err)
		must(s.t, unix.Fstat(fd, &f.Stat))
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		must(s.t, err)
		f.Flags, f.Owner = uint32(flags), ReadOwner(fd)
		f.AddLocks(int32(os.Getpid()), &f.Info)
		s.scene.Files = append(s.scene.Files, f)
		f.Ref = image.ObjRef(len(s.scene.Files))
		all = append(all, f)
	}
	return all
}

// check returns the findings about every file of the stage.
func (s *stage) check() []image.Finding {
	var all []image.Finding
	for _, f := range s.scene.Files {
		if k := Find(f); k == nil {
			all = append(all, Unsupported(f))
		} else {
			all = append(all, k.Check(f, s.scene)...)
		}
	}
	return all
}

// dump makes the records of every file, and takes them through the encoding of an image.
func (s *stage) dump() []image.File {
	s.t.Helper()
	for _, f := range s.scene.Files {
		matches := slices.DeleteFunc(All(), func(k Kind) bool { return !k.Match(f) })
		if len(matches) != 1 {
			s.t.Fatalf("%s: %d kinds match", f.Link, len(matches))
		}
		k := matches[0]
		rec := image.File{Kind: k.Name(), Flags: f.Flags, Pos: f.Info.Pos, Path: f.Link}
		before := undisturbed(s.t, f.FD)
		must(s.t, k.Dump(f, s.scene, &rec))
		if after := undisturbed(s.t, f.FD); before != after && !s.noisy {
			s.t.Errorf("Dump of %s disturbed it:\nbefore %s\nafter  %s", f.Link, before, after)
		}
		b, err := cbor.Marshal(rec)
		must(s.t, err)
		// File names are bytes, not text: the image reads them like this too.
		mode, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
		must(s.t, err)
		var again image.File
		must(s.t, mode.Unmarshal(b, &again))
		s.env.Manifest.Files = append(s.env.Manifest.Files, again)
	}
	return s.env.Manifest.Files
}

// open opens every record, as a restore does: first all CheckOpens, then all Opens.
func (s *stage) open() ([]int, error) {
	s.t.Helper()
	files := s.env.Manifest.Files
	for i := range files {
		if c, ok := ByName(files[i].Kind).(Checker); ok {
			if _, err := c.CheckOpen(&files[i], s.env); err != nil {
				return nil, err
			}
		}
	}
	var fds []int
	for i := range files {
		fd, err := ByName(files[i].Kind).Open(&files[i], s.env)
		if err != nil {
			return nil, err
		}
		s.t.Cleanup(func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds, s.closeShared()
}

// roundTrip is the whole way: fds, of which nothing may be refused, come back as equal files.
func roundTrip(t *testing.T, fds ...int) (*stage, []int) {
	t.Helper()
	s := newStage(t)
	return s, s.trip(fds...)
}

func (s *stage) trip(fds ...int) []int {
	s.t.Helper()
	s.add(fds...)
	must(s.t, image.Refusals(s.check()))
	s.dump()
	restored, err := s.open()
	must(s.t, err)
	for i, fd := range restored {
		for _, d := range differences(s.t, fds[i], fd) {
			s.t.Errorf("%s: %s", s.scene.Files[i].Link, d)
		}
	}
	return restored
}

// differences lists what of a file came out unlike. What names the very inode may differ.
func differences(t *testing.T, was, is int) []string {
	t.Helper()
	var all []string
	diff := func(what string, a, b any) {
		if a != b {
			all = append(all, fmt.Sprintf("%s: was %v, is %v", what, a, b))
		}
	}
	var a, b unix.Stat_t
	must(t, unix.Fstat(was, &a))
	must(t, unix.Fstat(is, &b))
	diff("mode", a.Mode, b.Mode)
	diff("uid", a.Uid, b.Uid)
	diff("size", a.Size, b.Size)
	diff("rdev", a.Rdev, b.Rdev)
	ia, ib := stableInfo(t, was), stableInfo(t, is)
	diff("fdinfo", strings.Join(ia, "\n"), strings.Join(ib, "\n"))
	if n, err := unix.FcntlInt(uintptr(is), unix.F_GETFD, 0); err != nil || n != unix.FD_CLOEXEC {
		all = append(all, fmt.Sprintf("descriptor flags %d %v: no close-on-exec", n, err))
	}
	return all
}

// stableInfo is an fdinfo without what is the descriptor's, or names the inode or mount.
func stableInfo(t *testing.T, fd int) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(string(fdinfo(t, fd))) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch key {
		case "ino", "mnt_id", "eventfd-id":
			continue
		case "flags":
			n, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			must(t, err)
			value = fmt.Sprintf("%#o", n&^unix.O_CLOEXEC)
		}
		all = append(all, key+":"+value)
	}
	return all
}

// timeLeft is the line of a timerfd that changes by itself.
var timeLeft = regexp.MustCompile(`it_value: .*\n`)

// undisturbed is everything about a descriptor that Dump must leave alone.
func undisturbed(t *testing.T, fd int) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if st.Rdev == devPTMX {
		st.Atim, st.Mtim, st.Ctim = unix.Timespec{}, unix.Timespec{}, unix.Timespec{} // of the inode that all masters of the machine share
	}
	queued, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		queued = -1
	}
	return fmt.Sprintf("%s %+v queued %d", timeLeft.ReplaceAll(fdinfo(t, fd), nil), st, queued)
}

func fdinfo(t *testing.T, fd int) []byte {
	t.Helper()
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	must(t, err)
	return b
}

// self is this process in the place of a restored one.
type self struct {
	pid int32 // what it says it is
	mem []byte
}

func (p *self) PID() int { return int(p.pid) }

func (p *self) Put(b []byte) (uint64, error) {
	p.mem = slices.Clone(b)
	return uint64(uintptr(unsafe.Pointer(&p.mem[0]))), nil
}

func (p *self) Syscall(nr uintptr, args ...uint64) (uint64, error) {
	var a [6]uintptr
	for i, v := range args {
		a[i] = uintptr(v)
	}
	r, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return 0, errno
	}
	return uint64(r), nil
}

// TestSuiteBites shows that the suite notices a restore that is wrong by one.
func TestSuiteBites(t *testing.T) {
	fd, err := unix.Eventfd(41, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)
	must(t, err)
	defer unix.Close(fd)
	_, got := roundTrip(t, fd)
	if d := differences(t, fd, got[0]); len(d) != 0 {
		t.Fatalf("equal files differ: %v", d)
	}
	_, err = unix.Write(got[0], binary.NativeEndian.AppendUint64(nil, 1))
	must(t, err)
	if d := differences(t, fd, got[0]); len(d) != 1 || !strings.Contains(d[0], "eventfd-count") {
		t.Fatalf("a count that is wrong by one was not noticed: %v", d)
	}
	plain, err := unix.Eventfd(41, unix.EFD_CLOEXEC)
	must(t, err)
	defer unix.Close(plain)
	if d := differences(t, fd, plain); len(d) != 1 || !strings.Contains(d[0], "semaphore") {
		t.Fatalf("a lost semaphore mode was not noticed: %v", d)
	}
	path := file(t, filepath.Join(t.TempDir(), "f"), "0123456789")
	a, b := open(t, path, unix.O_RDONLY), open(t, path, unix.O_RDONLY)
	_, err = unix.Seek(a, 5, unix.SEEK_SET)
	must(t, err)
	if d := differences(t, a, b); len(d) != 1 || !strings.Contains(d[0], "pos:\t5") {
		t.Fatalf("a wrong position was not noticed: %v", d)
	}
	if d := differences(t, a, open(t, path, unix.O_RDWR)); len(d) != 1 || !strings.Contains(d[0], "flags") {
		t.Fatalf("wrong flags were not noticed: %v", d)
	}
}

// TestNames wants every kind under its own name: they are the format.
func TestNames(t *testing.T) {
	var names []string
	for _, k := range All() {
		names = append(names, k.Name())
		if ByName(k.Name()) != k {
			t.Errorf("ByName(%q) is another kind", k.Name())
		}
	}
	want := []string{"file", "dir", "opath", "pipe", "fifo", "eventfd", "signalfd", "timerfd", "epoll", "memfd", "chardev", "tty", "pidfd", "inotify", "fanotify", "procfile", "unix", "inet", "netlink", "packet", "mqueue", "pty", "uring"}
	if !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	if ByName("no such kind") != nil {
		t.Error("ByName of an unknown name is not nil")
	}
}

// TestDamagedRecords wants an error, never a panic, for records that are cut, foreign or of a newer version.
func TestDamagedRecords(t *testing.T) {
	newer, err := cbor.Marshal(map[int]int{99: 1})
	must(t, err)
	for _, k := range All() {
		if k.Name() == "memfd" { // it has no record of its own
			continue
		}
		for _, rec := range [][]byte{nil, {0xff}, bytes.Repeat([]byte{0xa1}, 9), newer} {
			s := newStage(t)
			s.env.Manifest.Files = []image.File{{Kind: k.Name(), Path: "/x", Rec: rec}}
			fd, err := k.Open(&s.env.Manifest.Files[0], s.env)
			if err == nil {
				unix.Close(fd)
				t.Errorf("%s: a record of %x was accepted", k.Name(), rec)
			}
		}
	}
}
