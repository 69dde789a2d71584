package kind

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// The kernel lets nobody look at what waits in a terminal: it can only be read, and is gone then. So
// it is read and put back at once, while the tree stands still, in a process that ends its work even if we are
// killed meanwhile (drainQueues). What waits to be read by the master are plain bytes. What waits to be
// read by a slave are lines, or in raw mode bytes, and a line that is still being edited,
// which can only be seen by switching to raw mode for the moment.

const (
	// ttyBuffer is N_TTY_BUF_SIZE less one: what the line discipline holds at most.
	ttyBuffer = 4095
	// maxTyped bounds what may wait for a slave: above it more may wait in front of the line discipline,
	// unprocessed, and reading would have it processed early.
	maxTyped = 4000
	// maxWritten bounds what waits for the master: the buffer, and 8 KiB (pty.c) in front of it.
	maxWritten = 64 << 10
)

// queues is what is read from both ends of one terminal. It lies on the heap, and has no pointers.
type queues struct {
	master, slave int32 // descriptors, the slave's with O_NONBLOCK
	flags         uintptr
	packet        bool
	canonical     bool
	termios       [sizeofTermios]byte // as they are
	raw           [sizeofTermios]byte // that change nothing on the way in
	plain         [sizeofTermios]byte // as they are, but that they change nothing on the way out
	quiet         [sizeofTermios]byte // canonical, without echo, signals and erasing
	reads         int                 // how often the slave was read
	lengths       [ttyBuffer + 1]int32
	inLen, outLen int
	lost          int // bytes that could not be put back: 0
	step          int // what failed first: 0: nothing
	errno         uintptr
	in            [2 * ttyBuffer]byte
	out           [maxWritten]byte
}

// readQueues reads what waits at both ends and leaves it there.
func readQueues(f *Found, slave string, r *ptyRec, s *Scene) (*queues, error) {
	if ready, err := polled(f.FD, unix.POLLPRI); err != nil || r.Packet && ready&unix.POLLPRI != 0 {
		return nil, errors.Join(err, errors.New("a status of packet mode (TIOCPKT) waits to be read, which cannot be put back"))
	}
	polled(f.FD, unix.POLLIN) // has what is on its way arrive first
	unread, err := unix.IoctlGetInt(f.FD, unix.TIOCINQ)
	if err != nil {
		return nil, fmt.Errorf("FIONREAD: %w", err)
	}
	fd, err := s.openLocked(f.FD, r.Locked)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	polled(fd, unix.POLLIN)
	typed, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return nil, fmt.Errorf("FIONREAD: %w", err)
	}
	if typed > maxTyped {
		return nil, fmt.Errorf("%d bytes of input wait in %s, and perhaps more that cannot be counted", typed, slave)
	}
	q := newQueues(f.FD, fd, r)
	if err := q.stopped(f, r, unread, typed); err != nil {
		return nil, err
	}
	if unread == 0 && typed == 0 && !q.canonical {
		return q, nil
	}
	if err := s.alone(f, slave, unread+typed > 0); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	err = s.drainQueues(q)
	if terr := unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH); err == nil && terr != nil {
		err = fmt.Errorf("set the times of %s: %w", slave, terr)
	}
	if err == nil && q.inLen > maxTyped {
		err = fmt.Errorf("%d bytes of input wait in %s", q.inLen, slave)
	}
	return q, err
}

// openLocked opens the slave of a master, also one that is locked (TIOCSPTLCK): the lock is back even if we are
// killed meanwhile.
func (s *Scene) openLocked(master int, locked bool) (int, error) {
	const flags = unix.O_RDWR | unix.O_NONBLOCK
	if !locked {
		return openPeer(master, flags)
	}
	set := &[2]int32{0, 1}
	calls := []call{
		{nr: unix.SYS_IOCTL, args: [6]uintptr{uintptr(master), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&set[0]))}},
		{nr: unix.SYS_IOCTL, args: [6]uintptr{uintptr(master), unix.TIOCGPTPEER, flags | unix.O_NOCTTY | unix.O_CLOEXEC}},
		{nr: unix.SYS_IOCTL, args: [6]uintptr{uintptr(master), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&set[1]))}},
	}
	err := s.runApart(calls)
	runtime.KeepAlive(set)
	if err == nil {
		err = calls[1].err()
	}
	if err != nil {
		return -1, fmt.Errorf("TIOCGPTPEER: %w", err)
	}
	return calls[1].ret, nil
}

func newQueues(master, slave int, r *ptyRec) *queues {
	q := &queues{master: int32(master), slave: int32(slave), packet: r.Packet}
	copy(q.termios[:], r.Termios)
	q.raw, q.quiet, q.plain = q.termios, q.termios, q.termios
	t := (*unix.Termios)(unsafe.Pointer(&q.termios))
	q.canonical = t.Lflag&unix.ICANON != 0 && t.Lflag&unix.EXTPROC == 0
	raw := (*unix.Termios)(unsafe.Pointer(&q.raw))
	raw.Iflag, raw.Oflag, raw.Lflag = 0, t.Oflag&^unix.OPOST, 0
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	(*unix.Termios)(unsafe.Pointer(&q.plain)).Oflag &^= unix.OPOST
	quiet := (*unix.Termios)(unsafe.Pointer(&q.quiet))
	quiet.Iflag, quiet.Oflag, quiet.Lflag = 0, raw.Oflag, unix.ICANON|unix.IEXTEN
	quiet.Cc = [19]uint8{}
	quiet.Cc[unix.VLNEXT], quiet.Cc[unix.VEOF] = lnext, eof
	return q
}

// The two characters that mean something while lines are put back.
const (
	lnext = 0x16
	eof   = 0x04
)

// stopped finds out whether output is stopped, which nothing tells: then a slave is not ready for writing.
func (q *queues) stopped(f *Found, r *ptyRec, unread, typed int) error {
	ready, err := polled(int(q.slave), unix.POLLOUT)
	if err != nil || ready&unix.POLLOUT != 0 || unread >= maxTyped {
		return err // not stopped, or full
	}
	if t := (*unix.Termios)(unsafe.Pointer(&q.termios)); t.Iflag&unix.IXON != 0 {
		return errors.New("its output is stopped, by Ctrl-S or by tcflow(3), and nobody can tell which of them; continue it with Ctrl-Q")
	}
	if unread+typed > 0 || q.canonical {
		return errors.New("its output is stopped (tcflow(3))")
	}
	r.Stopped = true
	return nil
}

// alone refuses to touch what waits if anybody could be at work there meanwhile.
func (s *Scene) alone(f *Found, slave string, waits bool) error {
	if !s.Still {
		return errors.New("the tree does not stand still")
	}
	if pid := slaveOutside(slave, s); pid != 0 && waits {
		return fmt.Errorf("unread text waits in it, and pid %d outside the tree has its slave %s open", pid, slave)
	}
	for _, g := range s.Files {
		if g == f || (terminal{}).Match(g) && s.masterOf(g) == f {
			if g.Flags&unix.O_ASYNC != 0 {
				return errors.New("unread text may wait in it, and a program gets SIGIO (O_ASYNC) for what is put back")
			}
		}
	}
	if !s.pushAsked {
		s.pushAsked, s.pushErr = true, canPush()
	}
	return s.pushErr
}

// canPush finds out whether TIOCSTI is allowed, before anything depends on it.
func canPush() error {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(m) // only made for the question
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	fd, err := openPeer(m, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	c := []byte{'x'}
	if err := ioctlPtr(fd, unix.TIOCSTI, unsafe.Pointer(&c[0])); err != nil {
		return fmt.Errorf("what waits in it can be read, but not be put back: TIOCSTI: %w; ckptfs needs CAP_SYS_ADMIN", err)
	}
	return nil
}

// drainQueues reads everything, puts it back, and waits until that is done.
func (s *Scene) drainQueues(q *queues) error {
	flags, err := unix.FcntlInt(uintptr(q.master), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("F_GETFL: %w", err)
	}
	q.flags = uintptr(flags)
	if err := s.newApart(nil, q).run(); err != nil {
		return err
	}
	if q.lost > 0 {
		return fmt.Errorf("%d bytes of unread output could not be put back and are lost for the running program, too (step %d: %w)", q.lost, q.step, unix.Errno(q.errno))
	}
	if q.step != 0 {
		return fmt.Errorf("what waits in it cannot be read and put back: step %d: %w", q.step, unix.Errno(q.errno))
	}
	return nil
}

// recorded is the lengths of the lines for the record.
func (q *queues) recorded() (all []uint32) {
	for _, n := range q.lengths[:q.reads] {
		all = append(all, uint32(n))
	}
	return all
}

// inject puts what a record holds into a new terminal, which nobody else has yet.
func (r *ptyRec) inject(master, slave int, data []byte) error {
	if len(data) == 0 && len(r.Lines) == 0 {
		return nil
	}
	q := newQueues(master, slave, r)
	flags, err := unix.FcntlInt(uintptr(master), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("F_GETFL: %w", err)
	}
	q.flags = uintptr(flags)
	q.outLen, q.inLen = copy(q.out[:], data[:r.Output]), copy(q.in[:], data[r.Output:])
	for _, l := range r.Lines {
		q.lengths[q.reads] = int32(l)
		q.reads++
	}
	q.putInput()
	q.putOutput()
	if q.lost > 0 || q.step != 0 {
		return fmt.Errorf("what waited in it cannot be put in again: step %d: %w", q.step, unix.Errno(q.errno))
	}
	return nil
}

// valid checks what a record says about the queues. They come from an image.
func (r *ptyRec) valid(rec *image.File, e *Env) error {
	if r.Output > maxWritten || r.Input > maxTyped || len(r.Lines) > ttyBuffer {
		return fmt.Errorf("%d and %d bytes in %d lines wait in it, more than a terminal holds", r.Output, r.Input, len(r.Lines))
	}
	sum := uint64(0)
	for _, l := range r.Lines {
		sum += uint64(l)
	}
	if sum > uint64(r.Input) {
		return fmt.Errorf("its lines have %d bytes of %d", sum, r.Input)
	}
	if r.State == ptyFresh && r.Output+r.Input != 0 {
		return errors.New("text waits in it that nobody can have written")
	}
	if (rec.Blob != 0) != (r.Output+r.Input > 0) {
		return errors.New("the text that waits in it is missing, or not wanted")
	}
	if rec.Blob == 0 {
		return nil
	}
	data, err := e.Blob(rec.Blob)
	if err == nil && uint64(len(data)) != uint64(r.Output)+uint64(r.Input) {
		err = fmt.Errorf("%d bytes wait in it, and the image holds %d", r.Output+r.Input, len(data))
	}
	return err
}
