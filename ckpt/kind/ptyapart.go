package kind

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What stands here runs in a process of its own, and has the limits of apartChild.

// The steps of queues, for queues.step.
const (
	stepReadInput = iota + 1
	stepTermios
	stepPutInput
	stepReadOutput
	stepPutOutput
	stepFlags
)

// drain takes everything out of both queues, and puts it back.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) drain() {
	q.call(stepFlags, unix.SYS_FCNTL, uintptr(q.master), unix.F_SETFL, q.flags|unix.O_NONBLOCK)
	if q.packet {
		q.mode(0)
	}
	q.takeInput()
	q.putInput()
	q.takeOutput()
	q.putOutput()
	if q.packet {
		q.mode(1)
	}
	q.call(stepFlags, unix.SYS_FCNTL, uintptr(q.master), unix.F_SETFL, q.flags)
}

// call makes one system call, and keeps the first error.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) call(step int, nr, a, b, c uintptr) int {
	r, _, errno := syscall.RawSyscall(nr, a, b, c)
	if errno != 0 {
		if q.step == 0 {
			q.step, q.errno = step, uintptr(errno)
		}
		return -1
	}
	return int(r)
}

// mode switches packet mode.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) mode(on int32) {
	arg := on
	q.call(stepFlags, unix.SYS_IOCTL, uintptr(q.master), unix.TIOCPKT, uintptr(unsafe.Pointer(&arg)))
}

//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) set(t *[sizeofTermios]byte) bool {
	return q.call(stepTermios, unix.SYS_IOCTL, uintptr(q.slave), unix.TCSETS2, uintptr(unsafe.Pointer(t))) >= 0
}

// takeInput reads the lines, then in raw mode what is left. A read that finds nothing has waited for
// what was still on its way.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) takeInput() {
	if q.canonical {
		for q.reads < len(q.lengths) {
			n := q.take(int(q.slave), unsafe.Pointer(&q.in), q.inLen, len(q.in), stepReadInput)
			if n < 0 {
				break
			}
			q.lengths[q.reads] = int32(n)
			q.reads++
			q.inLen += n
		}
		if q.step != 0 || !q.set(&q.raw) {
			return
		}
	}
	for q.inLen < len(q.in) {
		n := q.take(int(q.slave), unsafe.Pointer(&q.in), q.inLen, len(q.in), stepReadInput)
		if n <= 0 {
			return
		}
		q.inLen += n
	}
}

// take reads once; -1: there is nothing, or it failed.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) take(fd int, buf unsafe.Pointer, at, size, step int) int {
	r, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(buf)+uintptr(at), uintptr(size-at))
	if errno == 0 {
		return int(r)
	}
	if errno != unix.EAGAIN && (errno != unix.EIO || step != stepReadOutput) && q.step == 0 { // EIO: no slave is left
		q.step, q.errno = step, uintptr(errno)
	}
	return -1
}

// marked reports whether the line of q.in[at:end] ended with an end of file.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) marked(at, end int) bool {
	if at >= end || end > len(q.in) {
		return true
	}
	c := q.in[end-1]
	t := (*unix.Termios)(unsafe.Pointer(&q.termios))
	if c == '\n' || c != 0 && c == t.Cc[unix.VEOL] {
		return false
	}
	return c == 0 || c != t.Cc[unix.VEOL2] || t.Lflag&unix.IEXTEN == 0
}

// putInput puts the input back, byte by byte, as if it was typed.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) putInput() {
	if !q.canonical {
		if q.inLen > 0 && q.set(&q.raw) {
			for i := 0; i < q.inLen && i < len(q.in); i++ {
				q.push(q.in[i])
			}
		}
		q.set(&q.termios)
		return
	}
	q.set(&q.quiet)
	at := 0
	for i := 0; i < q.reads && i < len(q.lengths); i++ {
		end := at + int(q.lengths[i])
		if end > len(q.in) {
			break
		}
		q.putLine(at, end)
		at = end
	}
	for ; at < q.inLen && at < len(q.in); at++ { // the line that is being edited
		q.literal(q.in[at])
	}
	q.set(&q.termios)
}

// putLine puts one line back. An end character other than newline is made one for the moment.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) putLine(at, end int) {
	marked := q.marked(at, end)
	last := end
	if !marked {
		last--
	}
	for i := at; i < last && i < len(q.in); i++ {
		q.literal(q.in[i])
	}
	if marked {
		q.push(eof)
		return
	}
	if c := q.in[last]; c != '\n' {
		quiet := (*unix.Termios)(unsafe.Pointer(&q.quiet))
		quiet.Cc[unix.VEOL] = c
		q.set(&q.quiet)
		q.push(c)
		quiet.Cc[unix.VEOL] = 0
		q.set(&q.quiet)
		return
	}
	q.push('\n')
}

// literal puts back a byte that does not end a line.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) literal(c byte) {
	if c < ' ' {
		q.push(lnext)
	}
	q.push(c)
}

// push types one byte (TIOCSTI), which takes effect at once.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) push(c byte) {
	b := c
	q.call(stepPutInput, unix.SYS_IOCTL, uintptr(q.slave), unix.TIOCSTI, uintptr(unsafe.Pointer(&b)))
}

// takeOutput reads what the master has not read.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) takeOutput() {
	for q.outLen < len(q.out) {
		n := q.take(int(q.master), unsafe.Pointer(&q.out), q.outLen, len(q.out), stepReadOutput)
		if n <= 0 {
			return
		}
		q.outLen += n
	}
}

// putOutput writes it again. The kernel moves what is written from one buffer to the next in the background,
// so there may be no room for a moment; and output that was stopped is let go rather than lost.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) putOutput() {
	if q.outLen == 0 || !q.set(&q.plain) {
		return
	}
	const tries = 5000 // of 100 µs
	const chunk = 1792 // TTY_BUFFER_PAGE of tty_buffer.h: what the kernel packs best, so that it takes as much as it held
	done := 0
	for i := 0; done < q.outLen && i < tries; i++ {
		r, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(q.slave), uintptr(unsafe.Pointer(&q.out))+uintptr(done), uintptr(min(q.outLen-done, chunk)))
		if errno == 0 && r > 0 {
			done += int(r)
			continue
		}
		if i == tries/2 {
			syscall.RawSyscall(unix.SYS_IOCTL, uintptr(q.slave), unix.TCXONC, unix.TCOOFF)
			syscall.RawSyscall(unix.SYS_IOCTL, uintptr(q.slave), unix.TCXONC, unix.TCOON)
		}
		q.nap()
	}
	if q.lost = q.outLen - done; q.lost > 0 && q.step == 0 {
		q.step, q.errno = stepPutOutput, uintptr(unix.EAGAIN)
	}
	q.set(&q.termios)
	arrived := unix.PollFd{Fd: q.master, Events: unix.POLLIN} // has the kernel move it to where it is read
	syscall.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&arrived)), 1, 1000)
}

//go:nosplit
//go:norace
//go:nocheckptr
func (q *queues) nap() {
	ts := unix.Timespec{Nsec: 100_000}
	syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}
