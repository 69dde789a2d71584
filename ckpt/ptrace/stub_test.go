package ptrace

import (
	"bytes"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stubOf seizes a process as restore does with its stubs.
func stubOf(t *testing.T, tr *Tracer, pid int, scratch uint64) (*Thread, *Remote) {
	t.Helper()
	th, err := tr.Seize(pid, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := th.WaitStop(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	maps, err := readMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := openMem(pid, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	v, start, err := readVDSO(pid, mem, maps)
	if err != nil {
		t.Fatal(err)
	}
	insn := start + uint64(bytes.Index(v, []byte{0x0f, 0x05}))
	r, err := NewStubRemote(pid, th, insn, scratch, 65536)
	if err != nil {
		t.Fatal(err)
	}
	return th, r
}

func TestStub(t *testing.T) {
	cmd, words := startReady(t, nil, "stub")
	pid := cmd.Process.Pid
	scratch, err := strconv.ParseUint(words[0], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	tr := NewTracer()
	defer tr.Close()
	err = tr.Do(func() error {
		th, r := stubOf(t, tr, pid, scratch)
		if v, err := r.Syscall(unix.SYS_GETPID); err != nil || int(v) != pid {
			t.Errorf("getpid: %d, %v", v, err)
		}
		batchTests(t, r, pid)

		// Another thread, and another process, in the same way.
		other, id, err := r.Clone(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_FS|unix.CLONE_FILES|unix.CLONE_SIGHAND|unix.CLONE_THREAD, 0, 0, 0, 0)
		if err != nil {
			return err
		}
		if err := r.Use(other); err != nil {
			return err
		}
		if v, err := r.Syscall(unix.SYS_GETTID); err != nil || int(v) != id || id != other.TID {
			t.Errorf("gettid in the thread: %d, %v, want %d", v, err, id)
		}
		batchTests(t, r, pid)
		child, id, err := r.Clone(unix.SYS_CLONE, uint64(unix.SIGCHLD), 0, 0, 0, 0)
		if err != nil {
			return err
		}
		cr, err := NewStubRemote(child.TID, child, r.insn, scratch, 65536)
		if err != nil {
			return err
		}
		if v, err := cr.Syscall(unix.SYS_GETPID); err != nil || int(v) != id {
			t.Errorf("getpid in the child: %d, %v", v, err)
		}
		batchTests(t, cr, id)
		if err := r.Use(th); err != nil {
			return err
		}
		batchTests(t, r, pid)
		if err := r.SetScratch(0, 0); err != nil {
			return err
		}
		if _, err := r.NewBatch(); err == nil {
			t.Error("a batch without scratch memory")
		}
		if err := r.Close(); err != nil {
			return err
		}
		return cr.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.Close()
	eventually(t, "it dies with its tracer", func() bool {
		st, _ := readStat(pid)
		return st.state == 'Z'
	})
}
