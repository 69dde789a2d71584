package kmem

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwn finds in the kernel what this process knows of itself.
func TestOwn(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := m.Threads(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	if len(tasks) < len(names)-2 || len(tasks) > len(names)+2 { // the runtime may make one meanwhile
		t.Errorf("%d threads, /proc tells of %d", len(tasks), len(names))
	}
	if pid, err := m.PID(tasks[0]); err != nil || pid != os.Getpid() {
		t.Errorf("the leader is %d (%v), we are %d", pid, err, os.Getpid())
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	dup, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	a, aerr := m.File(fd)
	b, berr := m.File(dup)
	if aerr != nil || berr != nil || a != b || a == 0 {
		t.Errorf("one file is at %#x (%v) and at %#x (%v)", a, aerr, b, berr)
	}
	if _, err := m.File(1 << 10); err == nil {
		t.Error("a descriptor that is not open leads to a file")
	}
}

// TestWrong wants errors for what is not there.
func TestWrong(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Word(0x1234); err == nil {
		t.Error("memory that is not there was read")
	}
	for _, name := range []string{"no_such_struct.x", "task_struct.no_such_member", "task_struct"} {
		if _, err := m.Get(0, name); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

// FuzzBTF wants no panic for a damaged description of types.
func FuzzBTF(f *testing.F) {
	f.Add([]byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 32, 0, 0, 1, 0, 'i', 'n', 0}) // a pointer
	f.Fuzz(func(t *testing.T, b []byte) {
		if ts, err := parseBTF(b); err == nil {
			for name := range ts.structs {
				_, _ = ts.find(name + ".x")
			}
		}
	})
}

// TestReadEach reads more places than fit into one call, and some that are none.
func TestReadEach(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	task, err := m.Task()
	if err != nil {
		t.Fatal(err)
	}
	off, err := m.Offset("task_struct.tgid")
	if err != nil {
		t.Fatal(err)
	}
	all := make([]Place, 3*bulkMost+5)
	for i := range all {
		all[i] = Place{Addr: task + off, Bytes: make([]byte, 4)}
		switch i % 10 {
		case 3:
			all[i].Addr = 8
		case 4: // as long as can be
			all[i] = Place{Addr: task, Bytes: make([]byte, maxRead)}
		}
	}
	if err := m.ReadEach(all); err != nil {
		t.Fatal(err)
	}
	for i, p := range all {
		switch i % 10 {
		case 3:
			if p.Err == nil {
				t.Errorf("place %d: address 8 can be read", i)
			}
			continue
		case 4:
			p.Bytes = p.Bytes[off:][:4]
		}
		if got := binary.LittleEndian.Uint32(p.Bytes); p.Err != nil || int(got) != os.Getpid() {
			t.Errorf("place %d: %d (%v), want %d", i, got, p.Err, os.Getpid())
		}
	}
	if err := m.ReadEach([]Place{{Addr: task, Bytes: make([]byte, maxRead+1)}}); err == nil {
		t.Error("a place longer than can be read")
	}
}
