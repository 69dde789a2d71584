package kind

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// What waits in a POSIX message queue can only be had by taking it out, which others would notice: so
// it is read from the kernel's memory. A queue outlives its processes. One that is still there at the
// restore, with other messages, gets those of the image by the policy ipc=replace, if nobody has it open.

// mqMessage is a message; its bytes are in the blob.
type mqMessage struct {
	Prio uint32 `cbor:"1,keyasint,omitempty"`
	Len  uint32 `cbor:"2,keyasint,omitempty"`
}

const (
	maxMQBytes = 64 << 20 // of one queue
	mqPrioMax  = 32768    // MQ_PRIO_MAX
)

// mqMessages reads what waits, at one moment.
func mqMessages(f *Found) (list []mqMessage, data []byte, err error) {
	for range 10 {
		before, err := mqGetAttr(f.FD)
		if err != nil {
			return nil, nil, err
		}
		if before.current == 0 {
			return nil, nil, nil
		}
		m, err := kmem.Open()
		if err != nil {
			return nil, nil, err
		}
		all, err := m.Messages(f.FD)
		after, aerr := mqGetAttr(f.FD)
		if aerr != nil {
			return nil, nil, aerr
		}
		if err == nil && int64(len(all)) == before.current && after.current == before.current {
			return packMessages(all)
		}
		if err != nil && after.current == before.current {
			return nil, nil, err
		}
	}
	return nil, nil, errors.New("others send and receive all the time")
}

func packMessages(all []kmem.Message) (list []mqMessage, data []byte, err error) {
	for _, m := range all {
		list = append(list, mqMessage{m.Prio, uint32(len(m.Data))})
		if data = append(data, m.Data...); len(data) > maxMQBytes {
			return nil, nil, fmt.Errorf("they have more than %d bytes", maxMQBytes)
		}
	}
	return list, data, nil
}

// checkMessages bounds what an image holds of messages.
func (r *mqueueRec) checkMessages() error {
	if int64(len(r.Messages)) > r.MaxMsg {
		return fmt.Errorf("message queue %q: %d messages, of %d", r.Name, len(r.Messages), r.MaxMsg)
	}
	total := int64(0)
	for i, m := range r.Messages {
		if total += int64(m.Len); int64(m.Len) > r.MsgSize || m.Prio >= mqPrioMax || total > maxMQBytes || i > 0 && m.Prio > r.Messages[i-1].Prio {
			return fmt.Errorf("message queue %q: its message %d has %d bytes and priority %d", r.Name, i, m.Len, m.Prio)
		}
	}
	return nil
}

// messages are those of the image, from whichever record of the queue has them.
func (r *mqueueRec) messages(e *Env) (list []mqMessage, data []byte, err error) {
	for i := range e.Manifest.Files {
		rec := &e.Manifest.Files[i]
		if rec.Kind != (mqueue{}).Name() {
			continue
		}
		other, err := (mqueue{}).record(rec)
		if err != nil {
			return nil, nil, err
		}
		if other.Dev != r.Dev || other.Ino != r.Ino || len(other.Messages) == 0 {
			continue
		}
		total := 0
		for _, m := range other.Messages {
			total += int(m.Len)
		}
		if rec.Blob != 0 {
			if data, err = e.Blob(rec.Blob); err != nil {
				return nil, nil, err
			}
		}
		if len(data) != total {
			return nil, nil, fmt.Errorf("message queue %q: the image holds %d bytes of messages, and says %d", r.Name, len(data), total)
		}
		return other.Messages, data, nil
	}
	return nil, nil, nil
}

// mayFill reports whether a queue has to be given the messages of the image, or why it cannot be.
func (r *mqueueRec) mayFill(fd int, want []mqMessage, data []byte, e *Env) (bool, error) {
	if len(want) == 0 {
		return false, nil
	}
	have, old, err := mqMessages(&Found{FD: fd})
	if err == nil && slices.Equal(have, want) && bytes.Equal(old, data) {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	switch pid := mqHolder(&st); {
	case pid != 0:
		return false, fmt.Errorf("message queue /%s is there with other messages (%d) than the image has (%d), and %s has it open; end that process", r.Name, len(have), len(want), processName(pid))
	case e.Policy.Get("ipc") == "refuse":
		return false, fmt.Errorf("message queue /%s is there with other messages (%d) than the image has (%d), by the policy ipc=refuse; remove it, or choose --policy ipc=replace", r.Name, len(have), len(want))
	}
	return true, nil
}

// mqHolder is another process that has a queue open, or 0. Who only looks at it for a moment, as cat(1) does, is
// waited for.
func mqHolder(st *unix.Stat_t) (pid int) {
	const tries, pause = 10, 50 * time.Millisecond
	for try := range tries {
		if try > 0 {
			time.Sleep(pause)
		}
		if pid = mqHolderNow(st); pid == 0 {
			return 0
		}
	}
	return pid
}

func mqHolderNow(st *unix.Stat_t) int {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || SameProgram(pid) {
			continue
		}
		dir := "/proc/" + p.Name() + "/fd/"
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			if link, err := os.Readlink(dir + fd.Name()); err != nil || len(link) == 0 || link[0] != '/' {
				continue
			}
			var now unix.Stat_t
			if unix.Stat(dir+fd.Name(), &now) == nil && now.Dev == st.Dev && now.Ino == st.Ino {
				return pid
			}
		}
	}
	return 0
}

// filled is a queue that has its messages.
type filled struct{}

// fill makes the messages of a queue those of the image, once.
func (r *mqueueRec) fill(name string, e *Env) error {
	_, err := shared(e, inodeKey("mqueue filled", r.Dev, r.Ino), func() (*filled, error) { return &filled{}, r.fillNow(name, e) })
	return err
}

func (r *mqueueRec) fillNow(name string, e *Env) error {
	want, data, err := r.messages(e)
	if err != nil {
		return err
	}
	fd, err := mqOpen(name, unix.O_RDWR|unix.O_NONBLOCK, nil)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if needed, err := r.mayFill(fd, want, data, e); !needed || err != nil {
		return err
	}
	have, old, err := mqTakeAll(fd, r.MsgSize)
	if err != nil {
		return err
	}
	if len(have) > 0 {
		e.Warn("message queue /%s had %d messages, and has the %d of the image now", name, len(have), len(want))
		if e.Undo != nil {
			e.Undo(func() error { return mqPutBack(name, r.MsgSize, have, old) })
		}
	}
	return mqSendAll(fd, want, data)
}

// mqPutBack gives a queue the messages that it had.
func mqPutBack(name string, size int64, have []mqMessage, old []byte) error {
	fd, err := mqOpen(name, unix.O_RDWR|unix.O_NONBLOCK, nil)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, err := mqTakeAll(fd, size); err != nil {
		return err
	}
	return mqSendAll(fd, have, old)
}

// mqTakeAll receives all messages of a queue, which has those of size bytes at most.
func mqTakeAll(fd int, size int64) (list []mqMessage, data []byte, err error) {
	buf := make([]byte, size)
	for {
		var prio uint32
		n, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDRECEIVE, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), uintptr(unsafe.Pointer(&prio)), 0, 0)
		switch errno {
		case 0:
			list, data = append(list, mqMessage{prio, uint32(n)}), append(data, buf[:n]...)
		case unix.EAGAIN:
			return list, data, nil
		case unix.EINTR:
		default:
			return list, data, fmt.Errorf("mq_receive: %w", errno)
		}
	}
}

// mqSendAll sends messages; those of one priority are received in the order in which they came.
func mqSendAll(fd int, list []mqMessage, data []byte) error {
	empty := [1]byte{}
	for _, m := range list {
		at := unsafe.Pointer(&empty[0])
		if m.Len > 0 {
			at = unsafe.Pointer(&data[0])
		}
		for {
			_, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDSEND, uintptr(fd), uintptr(at), uintptr(m.Len), uintptr(m.Prio), 0, 0)
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				return fmt.Errorf("mq_send of %d bytes: %w", m.Len, errno)
			}
			break
		}
		data = data[m.Len:]
	}
	return nil
}
