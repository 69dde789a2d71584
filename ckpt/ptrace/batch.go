package ptrace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Batch is a list of system calls that run in the entered thread in one go, some 0.3 µs
// each instead of 20. It is used for one Run. Nothing is checked before Run: errors of
// building it, such as too much data, come from there.
type Batch struct {
	r     *Remote
	data  []byte
	calls []*Ret
	err   error
	ran   bool
}

// errNotRun is the Err of a call that did not run, since an earlier one failed.
var errNotRun = errors.New("the call was not made")

// A Ret is one call of a batch, and after Run its result.
type Ret struct {
	nr     uintptr
	args   [6]uint64
	refs   [6]*Ret
	index  int
	ignore bool
	label  string
	raw    uint64
	done   bool
}

// Buf is memory of a batch inside the process.
type Buf struct {
	b      *Batch
	off, n int
}

// NewBatch begins a batch. In a target the scratch memory is mapped for the first one
// (in the entered thread) and stays until Close.
func (r *Remote) NewBatch() (*Batch, error) {
	switch {
	case r.th == nil:
		return nil, fmt.Errorf("pid %d: a batch: no thread is entered", r.pid)
	case r.stub && r.scratch.addr == 0:
		return nil, fmt.Errorf("pid %d: %w", r.pid, errNoScratch)
	case r.stub && !r.scratch.exec:
		if err := r.writeCode(); err != nil {
			return nil, err
		}
		r.scratch.exec = true
	case r.scratch.addr == 0:
		if err := r.mapScratch(); err != nil {
			return nil, err
		}
	}
	return &Batch{r: r}, nil
}

// Call adds a system call.
func (b *Batch) Call(nr uintptr, args ...uint64) *Ret {
	c := &Ret{nr: nr, index: len(b.calls)}
	if len(args) > len(c.args) {
		b.fail(fmt.Errorf("%s with %d arguments", callName(nr), len(args)))
	}
	copy(c.args[:], args)
	b.calls = append(b.calls, c)
	b.checkRoom()
	return c
}

// Alloc reserves n zero bytes, aligned to 16.
func (b *Batch) Alloc(n int) Buf {
	off := (len(b.data) + 15) &^ 15
	if n < 0 || off+n > b.r.scratch.room {
		b.fail(fmt.Errorf("a batch with %d bytes of data more than the scratch memory holds (%d)", n, b.r.scratch.room))
		return Buf{b: b}
	}
	b.data = append(b.data, make([]byte, off+n-len(b.data))...)
	b.checkRoom()
	return Buf{b: b, off: off, n: n}
}

// Put is Alloc with a copy of data in it.
func (b *Batch) Put(data []byte) Buf {
	buf := b.Alloc(len(data))
	copy(b.data[buf.off:buf.off+buf.n], data)
	return buf
}

// Room is how many bytes are left; a call takes 72.
func (b *Batch) Room() int {
	return max(0, b.r.scratch.room-b.entries()-len(b.calls)*entrySize-16)
}

// Len is the number of calls.
func (b *Batch) Len() int { return len(b.calls) }

// entries is the offset of the array of calls.
func (b *Batch) entries() int { return (len(b.data) + 15) &^ 15 }

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *Batch) checkRoom() {
	if b.entries()+len(b.calls)*entrySize > b.r.scratch.room {
		b.fail(fmt.Errorf("a batch of %d calls and %d bytes: the scratch memory holds %d", len(b.calls), len(b.data), b.r.scratch.room))
	}
}

// Run carries the calls out, in order. It stops at the first one that fails, unless its
// result is ignored, and returns an error that names it. The signal that ends a batch is
// SIGURG; one that the process gets from elsewhere meanwhile reaches it in Leave.
func (b *Batch) Run() error {
	r := b.r
	switch {
	case b.err != nil:
		return fmt.Errorf("pid %d: %w", r.pid, b.err)
	case b.ran:
		return fmt.Errorf("pid %d: a batch was run twice", r.pid)
	case r.th == nil:
		return fmt.Errorf("pid %d: a batch: no thread is entered", r.pid)
	}
	b.ran = true
	if len(b.calls) == 0 {
		return nil
	}
	if err := b.run(); err != nil {
		return err
	}
	return b.result()
}

func (b *Batch) run() error {
	r := b.r
	img := b.encode()
	if err := r.write(r.th.t, img, r.scratch.data); err != nil {
		return err
	}
	if !r.scratch.exec {
		return b.runSlow()
	}
	left, err := r.runCode(r.scratch.data+uint64(b.entries()), len(b.calls))
	if err != nil {
		return fmt.Errorf("pid %d: a batch of %d calls: %w", r.pid, len(b.calls), err)
	}
	if _, err := r.mem.ReadAt(img, int64(r.scratch.data)); err != nil {
		return fmt.Errorf("pid %d: read the results of a batch: %w", r.pid, err)
	}
	b.data = img[:len(b.data)]
	for _, c := range b.calls[:min(len(b.calls), len(b.calls)-left+1)] { // the one that failed is counted as left
		c.raw, c.done = binary.LittleEndian.Uint64(img[b.entries()+c.index*entrySize+entryRet:]), true
	}
	return nil
}

// encode returns data and entries as they go into the scratch memory.
func (b *Batch) encode() []byte {
	le := binary.LittleEndian
	img := make([]byte, b.entries()+len(b.calls)*entrySize)
	copy(img, b.data)
	for _, c := range b.calls {
		e := img[b.entries()+c.index*entrySize:]
		le.PutUint64(e, uint64(c.nr))
		flags := uint64(0)
		for i, a := range c.args {
			if of := c.refs[i]; of != nil {
				a = b.r.scratch.data + uint64(b.entries()+of.index*entrySize+entryRet)
				flags |= 1 << i
			}
			le.PutUint64(e[8+8*i:], a)
		}
		if c.ignore {
			flags |= flagIgnore
		}
		le.PutUint64(e[entryFlag:], flags)
	}
	return img
}

// runSlow makes the calls one by one, where no code may be added to the process.
func (b *Batch) runSlow() error {
	for _, c := range b.calls {
		args := c.args
		for i, of := range c.refs {
			if of != nil {
				args[i] = of.raw
			}
		}
		v, err := b.r.Syscall(c.nr, args[:]...)
		var e unix.Errno
		if errors.As(err, &e) {
			v = uint64(-int64(e))
		} else if err != nil {
			return err
		}
		c.raw, c.done = v, true
		if e != 0 && !c.ignore {
			break
		}
	}
	_, err := b.r.mem.ReadAt(b.data, int64(b.r.scratch.data))
	return err
}

// result returns the error of the first call that failed and is not ignored.
func (b *Batch) result() error {
	for _, c := range b.calls {
		if err := c.Err(); err != nil && !c.ignore {
			return fmt.Errorf("pid %d: %s: %w", b.r.pid, c.describe(), err)
		}
	}
	return nil
}

// describe names the call and its arguments.
func (c *Ret) describe() string {
	var s strings.Builder
	if c.label != "" {
		fmt.Fprintf(&s, "%s: ", c.label)
	}
	fmt.Fprintf(&s, "system call %d(", c.nr)
	for i, a := range c.args {
		if i > 0 {
			s.WriteString(", ")
		}
		if of := c.refs[i]; of != nil {
			fmt.Fprintf(&s, "=%#x", of.raw)
			continue
		}
		fmt.Fprintf(&s, "%#x", a)
	}
	return s.String() + ")"
}

// Val is the result of a call that succeeded, 0 of others.
func (c *Ret) Val() uint64 {
	v, err := result(c.raw)
	if err != nil {
		return 0
	}
	return v
}

// Err is the errno of the call, a unix.Errno, or nil.
func (c *Ret) Err() error {
	if !c.done {
		return errNotRun
	}
	_, err := result(c.raw)
	return err
}

// Ignore lets the batch go on if this call fails.
func (c *Ret) Ignore() *Ret { c.ignore = true; return c }

// Arg makes argument i (0 to 5) the result of an earlier call of the same batch.
func (c *Ret) Arg(i int, of *Ret) *Ret { c.refs[i] = of; return c }

// Label names the call in errors.
func (c *Ret) Label(s string) *Ret { c.label = s; return c }

// Addr is the address in the process.
func (b Buf) Addr() uint64 { return b.b.r.scratch.data + uint64(b.off) }

// Bytes is the content: what was put, and after Run what the calls left there.
func (b Buf) Bytes() []byte { return b.b.data[b.off : b.off+b.n : b.off+b.n] }

// runCode runs batchCode over n entries at addr, and returns how many are left.
func (r *Remote) runCode(addr uint64, n int) (left int, err error) {
	regs := r.regs
	if !r.stub {
		regs = r.foreign(r.st)
		regs.Rbp = r.frame.code(stubReturn)
	}
	regs.Orig_rax = ^uint64(0)
	regs.Rip, regs.R14, regs.R13 = r.scratch.code, addr, uint64(n)
	if err := r.th.SetRegs(&regs); err != nil {
		return 0, err
	}
	if err := r.th.SetSigMask(allSignals &^ sigBit(unix.SIGURG)); err != nil {
		return 0, err
	}
	left, err = r.awaitEnd(r.deadline())
	return left, errors.Join(err, r.th.SetSigMask(allSignals))
}

func sigBit(sig unix.Signal) uint64 { return 1 << (sig - 1) }

// awaitEnd lets the thread run until the signal at the end of batchCode.
func (r *Remote) awaitEnd(deadline time.Time) (left int, err error) {
	th, sig := r.th, unix.Signal(0)
	for {
		if err := th.Cont(sig); err != nil {
			return 0, err
		}
		s, err := th.wait(deadline, "run a batch of system calls")
		if err != nil {
			return 0, err
		}
		sig = 0
		switch {
		case !s.signal():
			continue // job control, or a child was made: on
		case s.Signal == unix.SIGSTOP:
			sig = s.Signal
			continue
		case s.Signal != unix.SIGURG:
			return 0, fmt.Errorf("thread %d: it got signal %d in our code", th.TID, s.Signal)
		}
		regs, err := th.Regs()
		if err != nil {
			return 0, err
		}
		end := regs.Rip == r.scratch.code+batchEnd
		if err := r.keepForeign(end); err != nil {
			return 0, err
		}
		if end {
			return int(regs.R13), nil
		}
	}
}
