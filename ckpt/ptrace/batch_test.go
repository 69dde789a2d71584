package ptrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The distances inside batchCode are counted by hand.
func TestCodeOffsets(t *testing.T) {
	if !bytes.Equal(batchCode[batchEnd-2:batchEnd], []byte{0x0f, 0x05}) {
		t.Error("batchEnd is not behind a syscall")
	}
	for _, off := range []int{stubCall, stubClone, stubHelper} {
		if !bytes.Equal(stubCode[off:off+2], []byte{0x0f, 0x05}) {
			t.Errorf("no syscall at offset %d of stubCode", off)
		}
	}
	if stubReturn != stubCall+2 {
		t.Error("stubReturn is not behind the first call")
	}
}

// batchTests run on every sort of Remote.
func batchTests(t *testing.T, r *Remote, pid int) {
	t.Helper()
	b := newBatch(t, r)
	buf, text := b.Alloc(40), b.Put([]byte("hello"))
	ids := []*Ret{b.Call(unix.SYS_GETPID), b.Call(unix.SYS_GETRLIMIT, unix.RLIMIT_NOFILE, buf.Addr())}
	bad := b.Call(unix.SYS_CLOSE, 12345).Ignore()
	if err := b.Run(); err != nil {
		t.Fatal(err)
	}
	if int(ids[0].Val()) != pid || ids[0].Err() != nil {
		t.Errorf("getpid: %d, %v", ids[0].Val(), ids[0].Err())
	}
	if n := binary.LittleEndian.Uint64(buf.Bytes()); n == 0 {
		t.Error("getrlimit wrote nothing")
	}
	if string(text.Bytes()) != "hello" {
		t.Errorf("data became %q", text.Bytes())
	}
	if !errors.Is(bad.Err(), unix.EBADF) || bad.Val() != 0 {
		t.Errorf("an ignored error: %v, %d", bad.Err(), bad.Val())
	}

	// The six arguments, one of them a result.
	b = newBatch(t, r)
	addr := b.Call(unix.SYS_MMAP, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	b.Call(unix.SYS_MPROTECT, 0, 4096, unix.PROT_READ).Arg(0, addr)
	b.Call(unix.SYS_MUNMAP, 0, 8192).Arg(0, addr)
	if err := b.Run(); err != nil {
		t.Error(err)
	}

	// It stops at an error, and says which.
	b = newBatch(t, r)
	first := b.Call(unix.SYS_GETPID)
	failing := b.Call(unix.SYS_LSEEK, 0x3e7, 2, 3).Label("move the offset")
	after := b.Call(unix.SYS_GETPID)
	err := b.Run()
	if !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), "move the offset") || !strings.Contains(err.Error(), "0x3e7") {
		t.Errorf("the error is %v", err)
	}
	if first.Err() != nil || !errors.Is(failing.Err(), unix.EBADF) || !errors.Is(after.Err(), errNotRun) {
		t.Errorf("results %v, %v, %v", first.Err(), failing.Err(), after.Err())
	}
	if b.Run() == nil {
		t.Error("a batch ran twice")
	}

	// Its size is bounded.
	b = newBatch(t, r)
	n := b.Room()
	b.Alloc(n - 10*entrySize)
	for range 8 {
		b.Call(unix.SYS_GETPID)
	}
	if err := b.Run(); err != nil {
		t.Errorf("a full batch: %v", err)
	}
	b = newBatch(t, r)
	b.Alloc(b.Room() + 100)
	if err := b.Run(); err == nil {
		t.Error("too much data was taken")
	}
	b = newBatch(t, r)
	for range b.Room()/entrySize + 2 {
		b.Call(unix.SYS_GETPID)
	}
	if err := b.Run(); err == nil {
		t.Error("too many calls were taken")
	}
	if err := newBatch(t, r).Run(); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
}

func newBatch(t *testing.T, r *Remote) *Batch {
	t.Helper()
	b, err := r.NewBatch()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBatch(t *testing.T) {
	for _, tc := range []struct {
		name, mode string
		exec       bool
	}{{"code", "waitpoll", true}, {"one by one", "mdwe", false}} {
		t.Run(tc.name, func(t *testing.T) {
			cmd, _ := startReady(t, nil, tc.mode)
			inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
				batchTests(t, f.r, cmd.Process.Pid)
				if f.r.scratch.exec != tc.exec {
					t.Errorf("code may run: %v", f.r.scratch.exec)
				}
				if start, end := f.r.Scratch(); end-start != scratchSize {
					t.Errorf("scratch memory %#x-%#x", start, end)
				}
				return nil
			})
			checkAlive(t, cmd.Process.Pid)
			checkUntouched(t, cmd.Process.Pid)
		})
	}
}

func BenchmarkSyscall(b *testing.B) {
	benchmark(b, func(f *frozen) error {
		_, err := f.r.Syscall(unix.SYS_GETPID)
		return err
	})
}

func BenchmarkBatch100(b *testing.B) {
	benchmark(b, func(f *frozen) error { return batchOf(f, 100) })
}

// benchmark measures f in an idle target.
func benchmark(b *testing.B, f func(f *frozen) error) {
	cmd := startBench(b)
	tr := NewTracer()
	defer tr.Close()
	err := tr.Do(func() error {
		fz, err := freeze(tr, cmd.Process.Pid)
		if err != nil {
			return err
		}
		if err := fz.r.Enter(fz.threads[0], fz.states[0]); err != nil {
			return err
		}
		for b.Loop() {
			if err := f(fz); err != nil {
				return err
			}
		}
		return fz.thaw()
	})
	if err != nil {
		b.Fatal(err)
	}
}

func TestRegsBytes(t *testing.T) {
	r := Regs{R15: 1, Rax: 2, Orig_rax: 3, Rip: 4, Gs: 5, Fs_base: 6}
	b := RegsBytes(&r)
	if len(b) != 27*8 || b[0] != 1 || b[10*8] != 2 || b[26*8] != 5 {
		t.Errorf("%x", b)
	}
	got, err := BytesRegs(b)
	if err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := BytesRegs(b[1:]); err == nil {
		t.Error("short registers were taken")
	}
}

func TestResumeRegs(t *testing.T) {
	const none = ^uint64(0)
	nowhere, err := os.Open(os.DevNull) // no code to read
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	for _, tc := range []struct {
		rax        int64
		orig       uint64
		wantRax    uint64
		back       bool
		restart    bool
		fromBlock  bool
		hadSyscall bool
	}{
		{7, none, 7, false, false, false, false},
		{7, unix.SYS_READ, 7, false, false, false, true},
		{eRestartSys, unix.SYS_READ, unix.SYS_READ, true, true, false, true},
		{eRestartNoIntr, unix.SYS_WAIT4, unix.SYS_WAIT4, true, true, false, true},
		{eRestartNoHand, unix.SYS_PAUSE, unix.SYS_PAUSE, true, true, false, true},
		{eRestartRestartBlock, unix.SYS_POLL, unix.SYS_POLL, true, true, true, true},
		{eRestartRestartBlock, unix.SYS_NANOSLEEP, negative(eINTR), false, true, true, true},
		{eRestartRestartBlock, unix.SYS_RESTART_SYSCALL, negative(eINTR), false, true, true, true},
	} {
		st := &State{Regs: Regs{Rip: 100, Rax: uint64(tc.rax), Orig_rax: tc.orig}}
		st.Restart = restartInfo(&st.Regs, nowhere)
		i, r := st.Restart, st.ResumeRegs()
		if r.Rax != tc.wantRax || (r.Rip == 98) != tc.back {
			t.Errorf("%d of %d: rax %d, rip %d", tc.rax, int64(tc.orig), int64(r.Rax), r.Rip)
		}
		if i.Restartable != tc.restart || i.FromBlock != tc.fromBlock || (i.NR >= 0) != tc.hadSyscall {
			t.Errorf("%d of %d: %+v", tc.rax, int64(tc.orig), i)
		}
	}
	r := Regs{Rax: negative(eINTR), Orig_rax: unix.SYS_EPOLL_WAIT}
	if !fixInterrupted(&r) || int64(r.Rax) != eRestartNoHand {
		t.Errorf("epoll_wait: rax %d", int64(r.Rax))
	}
	r = Regs{Rax: negative(eINTR), Orig_rax: unix.SYS_READ}
	if fixInterrupted(&r) {
		t.Error("the EINTR of read was changed")
	}
}

// The number of a call that the kernel has restarted once is read from the code.
func TestRestartedCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "code")
	code := []byte{0x90, 0xb8, 7, 0, 0, 0, 0x0f, 0x05, 0xc3, 0x89, 0xf8, 0x90, 0x90, 0x90, 0x0f, 0x05, 0xc3}
	if err := os.WriteFile(path, code, 0o600); err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for _, tc := range []struct {
		orig, rip uint64
		want      int
	}{{unix.SYS_RESTART_SYSCALL, 8, unix.SYS_POLL}, {unix.SYS_RESTART_SYSCALL, 16, 219}, {unix.SYS_RESTART_SYSCALL, 4, 219}, {unix.SYS_READ, 8, unix.SYS_READ}} {
		st := &State{Regs: Regs{Orig_rax: tc.orig, Rip: tc.rip, Rax: negative(eRestartRestartBlock)}}
		if st.Restart = restartInfo(&st.Regs, mem); st.Restart.NR != tc.want || !st.Restart.FromBlock {
			t.Errorf("%d at %d: %+v, want %d", tc.orig, tc.rip, st.Restart, tc.want)
		}
		if r := st.ResumeRegs(); tc.want == unix.SYS_POLL && (r.Rax != unix.SYS_POLL || r.Rip != tc.rip-syscallLen) {
			t.Errorf("poll goes on with rax %d at %d", r.Rax, r.Rip)
		}
	}
}

func TestParseVMA(t *testing.T) {
	v, ok := parseVMA("7f00-7f10 rw-s 00001000 00:01 1234                       /dev/zero (deleted)")
	if !ok || v.start != 0x7f00 || v.end != 0x7f10 || v.file != "00:01 1234" || v.path != "/dev/zero (deleted)" || !isSharedAnon(v) {
		t.Errorf("%+v, %v", v, ok)
	}
	for _, bad := range []string{"", "x", "1-2", "g-1 rw-p 0 0 0", "1-2 rw 0 0 0"} {
		if _, ok := parseVMA(bad); ok {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestFindHole(t *testing.T) {
	maps, err := readMaps(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		a, err := findHole(os.Getpid(), maps, scratchSize)
		if err != nil || a%pageSize != 0 {
			t.Fatalf("%#x, %v", a, err)
		}
		for _, v := range maps {
			if a < v.end && v.start < a+scratchSize {
				t.Fatalf("%#x is in %+v", a, v)
			}
		}
	}
}
