package ptrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A frame is the same length whatever the vector state is, up to AMX tiles in use, and holds
// the registers in the order in which the code loads them.
func TestFrame(t *testing.T) {
	st := &State{SigMask: 0x55, Regs: Regs{Rax: 1, Rcx: 2, Rdx: 3, Rbx: 4, Rbp: 5, Rsi: 6, Rdi: 7, R8: 8, R9: 9, R10: 10, R11: 11,
		R12: 12, R13: 13, R14: 14, R15: 15, Rsp: 0x7000, Rip: 0x8000, Eflags: 0x246, Orig_rax: ^uint64(0)}}
	for _, xlen := range []int{832, 2696, 11008} {
		st.XState = bytes.Repeat([]byte{0xff}, xlen) // every feature in use
		f, err := buildFrame(st, 0x1000, 0xabc)
		if err != nil {
			t.Fatal(err)
		}
		if len(f.bytes) != frameLen() || len(f.bytes) > 512 {
			t.Errorf("a frame of %d bytes", len(f.bytes))
		}
		want := append(append([]byte(nil), frameMagic...), 0xbc, 0x0a, 0, 0, 0, 0, 0, 0)
		for _, v := range []uint64{^uint64(0), 0x55, 0x246, 0x7000, 0x8000, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} {
			want = binary.LittleEndian.AppendUint64(want, v)
		}
		if !bytes.HasPrefix(f.bytes, append(want, 0x0f, 0x05)) {
			t.Errorf("the frame is %x", f.bytes)
		}
		if f.code(stubCall) != 0x1000+uint64(len(want)) {
			t.Errorf("code at %#x", f.code(stubCall))
		}
	}
	st.Regs.Eflags |= flagTrap
	if _, err := buildFrame(st, 0x1000, 0); err == nil || !strings.Contains(err.Error(), "single-steps itself") {
		t.Errorf("the trap flag: %v", err)
	}
}

// What rt_sigreturn(2) cannot do the way back does: an interrupted sleep goes on.
func TestReturnRegs(t *testing.T) {
	for _, tc := range []struct {
		rax, orig        uint64
		wantRax, wantRip uint64
	}{
		{7, ^uint64(0), 7, 100},
		{7, unix.SYS_READ, 7, 100},
		{negative(eRestartSys), unix.SYS_READ, unix.SYS_READ, 98},
		{negative(eRestartNoIntr), unix.SYS_WAIT4, unix.SYS_WAIT4, 98},
		{negative(eRestartNoHand), unix.SYS_PAUSE, unix.SYS_PAUSE, 98},
		{negative(eRestartRestartBlock), unix.SYS_NANOSLEEP, unix.SYS_RESTART_SYSCALL, 98},
		{negative(eRestartRestartBlock), unix.SYS_RESTART_SYSCALL, unix.SYS_RESTART_SYSCALL, 98},
	} {
		st := &State{Regs: Regs{Rip: 100, Rax: tc.rax, Orig_rax: tc.orig}}
		if r := st.returnRegs(); r.Rax != tc.wantRax || r.Rip != tc.wantRip {
			t.Errorf("%d of %d: rax %d, rip %d", int64(tc.rax), int64(tc.orig), int64(r.Rax), r.Rip)
		}
	}
}

// abandon stops a process with one thread, lets f see it with that thread entered, and ends
// its tracer, after which the thread is on its own.
func abandon(t *testing.T, pid int, f func(f *frozen) error) {
	t.Helper()
	tr := NewTracer()
	defer tr.Close()
	err := tr.Do(func() error {
		fz, err := freeze(tr, pid)
		if err != nil {
			return err
		}
		if err := fz.r.Enter(fz.threads[0], fz.states[0]); err != nil {
			return err
		}
		return f(fz)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A frame page that was swapped out meanwhile is read back like any other page.
func TestFrameSwapped(t *testing.T) {
	addSwap(t)
	s := startTarget(t, compile(t, "regs", "-static"), "single")
	pid := s.cmd.Process.Pid
	out := 0
	for range 10 {
		abandon(t, pid, func(f *frozen) error {
			if err := pageOut(pid, f.r.frame.addr); err != nil {
				return err
			}
			b := make([]byte, 8)
			pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
			if err != nil {
				return err
			}
			defer pagemap.Close()
			_, err = pagemap.ReadAt(b, int64(f.r.frame.addr/pageSize*8))
			if binary.LittleEndian.Uint64(b)>>62&1 == 1 { // bit 62: swapped
				out++
			}
			return err
		})
		s.check(t, "a frame that was swapped out")
	}
	if out == 0 {
		t.Error("the page of the frame was never swapped out")
	}
	s.checkClean(t)
}

// addSwap gives the machine 16 MiB of swap for the time of a test.
func addSwap(t *testing.T) {
	t.Helper()
	const size, page = 16 << 20, 4096
	name := filepath.Join(t.TempDir(), "swap")
	b := make([]byte, size)
	binary.LittleEndian.PutUint32(b[1024:], 1)           // version, union swap_header of linux/swap.h
	binary.LittleEndian.PutUint32(b[1028:], size/page-1) // last page
	copy(b[page-10:], "SWAPSPACE2")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, e := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(p)), 0, 0); e != 0 {
		t.Skipf("no swap file can be had in %s: %v", filepath.Dir(name), e)
	}
	t.Cleanup(func() {
		if _, _, e := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(p)), 0, 0); e != 0 {
			t.Errorf("swapoff %s: %v", name, e)
		}
	})
}

// pageOut asks the kernel to swap out the page at addr of another process.
func pageOut(pid int, addr uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	iov := unix.RemoteIovec{Base: uintptr(addr &^ (pageSize - 1)), Len: pageSize}
	_, _, e := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_PAGEOUT, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// A signal that was pending when the tracer died may be in its handler for long, which then
// returns into the frame: it stays as it is until then.
func TestHandlerAboveFrame(t *testing.T) {
	cmd, in, out := startTalking(t, "handler")
	pid := cmd.Process.Pid
	abandon(t, pid, func(f *frozen) error { return unix.Kill(pid, unix.SIGUSR1) })
	if line, err := out.ReadString('\n'); err != nil || line != "in the handler\n" {
		t.Fatalf("it said %q, %v", line, err)
	}
	// Further checkpoints, killed ones too, leave that frame alone: until there is no room.
	for i := range 3 {
		inFrozen(t, pid, func(f *frozen) error {
			if left := f.r.Leftovers(); len(left) != 1 || !bytes.HasPrefix(left[0].Bytes, frameMagic) || f.r.slot == 0 {
				t.Errorf("round %d: slot %d, kept %+v", i, f.r.slot, left)
			}
			return errors.Join(f.r.Sweep(pid, true), batchOf(f, 3))
		})
		abandon(t, pid, func(f *frozen) error { return batchOf(f, 3) })
	}
	if _, err := in.Write([]byte("x")); err != nil { // ends the handler
		t.Fatal(err)
	}
	if line, err := out.ReadString('\n'); err != nil || line != "went on\n" {
		t.Fatalf("after the handler it said %q, %v", line, err)
	}
	inFrozen(t, pid, func(f *frozen) error { return errors.Join(f.r.Sweep(pid, true), batchOf(f, 2)) })
	checkAlive(t, pid)
	checkUntouched(t, pid)
}

// Where handlers stand above a frame in every slot, nothing is changed.
func TestNoSlot(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	inFrozen(t, cmd.Process.Pid, func(f *frozen) error {
		full := *f.r
		full.th, full.chosen, full.vdso = nil, false, &vdso{start: f.r.vdso.start, bytes: f.r.vdso.bytes, tail: f.r.vdso.tail,
			left: bytes.Clone(f.r.vdso.left)}
		sp, stack, err := full.stackOf(cmd.Process.Pid)
		if err != nil {
			return err
		}
		n := full.vdso.slots()
		if n < 2 || len(stack) < ucEnd*n {
			t.Fatalf("%d slots, %d bytes of stack", n, len(stack))
		}
		was := bytes.Clone(stack[:ucEnd*n])
		for slot := range n {
			off := full.vdso.slotOff(slot)
			copy(full.vdso.left[off-full.vdso.tail:], frameMagic)
			rip := full.vdso.start + uint64(off) + frameCodeOff + 50
			if _, err := full.mem.WriteAt(sigRecord(rip, sp+1000, span{}), int64(sp)+int64(ucEnd*slot)); err != nil {
				return err
			}
		}
		err = full.Enter(f.threads[0], f.states[0])
		if err == nil || !strings.Contains(err.Error(), "signal handlers have to return into") {
			t.Errorf("enter: %v", err)
		}
		full.vdso = &vdso{start: f.r.vdso.start, bytes: f.r.vdso.bytes, tail: len(f.r.vdso.bytes) - frameLen()/2, left: make([]byte, frameLen()/2)}
		if err := full.Enter(f.threads[0], f.states[0]); err == nil || !strings.Contains(err.Error(), "unused end of this kernel's vdso") {
			t.Errorf("a short tail: %v", err)
		}
		_, err = full.mem.WriteAt(was, int64(sp))
		return err
	})
	checkAlive(t, cmd.Process.Pid)
	checkUntouched(t, cmd.Process.Pid)
}

// sigRecord makes what isSigRecord looks at of a struct ucontext.
func sigRecord(rip, rsp uint64, alt span) []byte {
	b := make([]byte, ucEnd)
	binary.LittleEndian.PutUint64(b[ucStackSP:], alt.start)
	binary.LittleEndian.PutUint64(b[ucStackSize:], alt.end-alt.start)
	binary.LittleEndian.PutUint64(b[ucRIP:], rip)
	binary.LittleEndian.PutUint64(b[ucRSP:], rsp)
	b[ucCS] = userCS
	return b
}

func TestIsSigRecord(t *testing.T) {
	const sp = 0x10000
	for _, tc := range []struct {
		what string
		rsp  uint64
		alt  span
		cut  int
		want bool
	}{
		{"on the thread's own stack", sp + 3000, span{}, 0, true},
		{"its stack pointer is below it", sp - 8, span{}, 0, false},
		{"its stack pointer is far away", sp + 1<<20, span{}, 0, false},
		{"on the alternate stack", 0x900000, span{sp - 64, sp + 8192}, 0, true},
		{"on that of another thread", sp + 3000, span{sp + 8, sp + 8192}, 0, false},
		{"cut", sp + 3000, span{}, 1, false},
	} {
		b := append(make([]byte, 64), sigRecord(1, tc.rsp, tc.alt)...)
		if got := isSigRecord(b[:len(b)-tc.cut], 64, sp); got != tc.want {
			t.Errorf("%s: %v", tc.what, got)
		}
	}
	if isSigRecord(make([]byte, 400), -8, sp) || isSigRecord(make([]byte, 400), 0, sp) {
		t.Error("zeros are taken for one")
	}
}
