package kmem

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDescriptors compares what the kernel's memory tells of descriptors of ours with /proc.
func TestDescriptors(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	must := func(fd int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	file := must(unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_CLOEXEC, 0))
	if _, err := unix.Seek(file, 77, 0); err != nil {
		t.Fatal(err)
	}
	dup := must(unix.FcntlInt(uintptr(file), unix.F_DUPFD, 700)) // without close-on-exec
	dir := must(unix.Open("/proc/self", unix.O_RDONLY|unix.O_DIRECTORY, 0))
	other := filepath.Join(t.TempDir(), "locked")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	locked := must(unix.Open(other, unix.O_RDWR, 0))
	if err := unix.Flock(locked, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	must(p[0], nil)
	must(p[1], nil)
	udp := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0))
	event := must(unix.Eventfd(3, 0))
	pidfd := must(unix.PidfdOpen(os.Getpid(), 0))
	if _, err := unix.FcntlInt(uintptr(udp), unix.F_SETOWN, os.Getpid()); err != nil {
		t.Fatal(err)
	}
	twin := must(unix.Open(path, unix.O_RDONLY, 0))
	all, err := m.Descriptors(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if all[file].File == 0 || all[file].File != all[dup].File || all[file].File == all[locked].File {
		t.Error("files have other addresses than they ought to")
	}
	numbers, err := m.Numbers(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for fd := range all {
		if (all[fd].File != 0) != slices.Contains(numbers, fd) {
			t.Errorf("descriptor %d: %+v, and the list is %v", fd, all[fd], numbers)
		}
	}
	if a, b, c := all[file], all[twin], all[locked]; a.File == b.File || a.Name != b.Name || a.Mount != b.Mount || a.Name == c.Name || a.Name == 0 {
		t.Errorf("names are at %#x and %#x, and %#x of another file", a.Name, b.Name, c.Name)
	}
	if _, known := m.ownerOffset(&walk{m: m}); known && (all[udp].Unowned || !all[file].Unowned) {
		t.Errorf("unowned: %v with F_SETOWN, %v without", all[udp].Unowned, all[file].Unowned)
	}
	for fd, plain := range map[int]bool{file: true, dup: true, dir: true, p[0]: true, p[1]: true, udp: true, locked: false, event: false, pidfd: false} {
		d := &all[fd]
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		if err != nil {
			t.Fatal(err)
		}
		var pos int64
		var flags uint32
		var mnt int
		if _, err := fmt.Sscanf(string(b), "pos:\t%d\nflags:\t%o\nmnt_id:\t%d\n", &pos, &flags, &mnt); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		got := d.Flags &^ unix.O_CLOEXEC
		if d.CloExec {
			got |= unix.O_CLOEXEC
		}
		if d.Plain != plain || d.Pos != pos || got != flags || d.MntID != mnt {
			t.Errorf("%d: %+v with flags %#o, /proc has %q", fd, d, got, b)
		}
	}
	if n := len(all); n <= dup || all[dup-1].File != 0 {
		t.Errorf("%d descriptors, and %d is open", n, dup-1)
	}
}
