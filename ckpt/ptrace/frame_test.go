package ptrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// The compacted format, which is for features that do not fit in the standard one, must
// be taken by rt_sigreturn: a thread is left with such a frame by a tracer that ends.
func TestCompactedFrame(t *testing.T) {
	if !hasXSAVEC() {
		t.Log("this CPU does not know the compacted format, and no feature that needs it")
		return
	}
	s := startTarget(t, compile(t, "regs"), "single")
	for range 20 {
		tr := NewTracer()
		err := tr.Do(func() error {
			f, err := freeze(tr, s.cmd.Process.Pid)
			if err != nil {
				return err
			}
			if err := f.r.Enter(f.threads[0], f.states[0]); err != nil {
				return err
			}
			x := f.states[0].XState
			fp := sealFP(compact(x), binary.LittleEndian.Uint64(x[swOff:]))
			if len(fp) > int(f.r.frame.uc-f.r.frame.addr) {
				return errors.New("longer than the standard format")
			}
			return f.r.write(tr, fp, f.r.frame.addr)
		})
		tr.Close() // the thread goes on through the frame
		if err != nil {
			t.Fatal(err)
		}
		s.check(t, "return through a compacted frame")
	}
	s.checkClean(t)
}

// Room for the frame: it is cut to what is in use, and what does not fit is an error.
func TestFrameRoom(t *testing.T) {
	x := make([]byte, 2696)
	binary.LittleEndian.PutUint64(x[swOff:], 0xe7)
	binary.LittleEndian.PutUint64(x[xstateBVOff:], x87SSE)
	fp, err := fpFrame(x, xminLen+fpMagicLen)
	if err != nil || len(fp) != xminLen+fpMagicLen {
		t.Fatalf("legacy registers: %d bytes, %v", len(fp), err)
	}
	le := binary.LittleEndian
	if le.Uint32(fp[swOff:]) != fpMagic1 || le.Uint32(fp[swOff+4:]) != xminLen+4 || le.Uint64(fp[swOff+8:]) != 0xe7 ||
		le.Uint32(fp[swOff+16:]) != xminLen || le.Uint32(fp[xminLen:]) != fpMagic2 {
		t.Errorf("marks %x %x", fp[swOff:fxsaveLen], fp[xminLen:])
	}
	if _, err := fpFrame(x, xminLen); err == nil || !strings.Contains(err.Error(), "vdso") {
		t.Errorf("no room: %v", err)
	}
	if _, err := fpFrame(x[:100], 4096); err == nil {
		t.Error("no XSAVE area was taken")
	}
	le.PutUint64(x[xstateBVOff:], x87SSEAVX)
	if fp, err = fpFrame(x, 4096); err != nil || len(fp) != 832+4 {
		t.Errorf("AVX: %d bytes, %v", len(fp), err)
	}
	if _, err := buildFrame(&State{XState: x}, 0x1000, 1000, 0); err == nil {
		t.Error("a frame of 1140 bytes fits in 1000")
	}
	f, err := buildFrame(&State{XState: x, SigMask: 0x55}, 0x1000, 1144, 0xabc)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(f.bytes, append(append([]byte(nil), frameMagic...), 0xbc, 0x0a)) {
		t.Error("magic and note are not in it")
	}
	if f.code(0) != 0x1000+840+codeOff {
		t.Errorf("code at %#x", f.code(0))
	}
}
