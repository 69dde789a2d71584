package kind

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// A process can have a signal sent to it when a message comes into an empty queue (mq_notify(3)). It has
// the queue open as long, so it registers again by itself.

// mqNotify is a registration.
type mqNotify struct {
	PID    int32  `cbor:"1,keyasint"`
	Signal int32  `cbor:"2,keyasint,omitempty"` // 0: SIGEV_NONE
	Value  uint64 `cbor:"3,keyasint,omitempty"` // sigev_value
}

const (
	sigevSignal = 0 // SIGEV_SIGNAL of asm-generic/siginfo.h
	sigevNone   = 1
	sigevSize   = 64 // struct sigevent
	maxSignal   = 64
)

// check says what is wrong with a registration from an image.
func (n *mqNotify) check() error {
	if n != nil && (n.PID <= 0 || n.Signal < 0 || n.Signal > maxSignal) {
		return fmt.Errorf("pid %d cannot wait for its signal %d", n.PID, n.Signal)
	}
	return nil
}

// readNotify reads the registration of a process.
func readNotify(f *Found, pid int) (*mqNotify, error) {
	m, err := kmem.Open()
	if err != nil {
		return nil, fmt.Errorf("what its signal will carry cannot be read: %w", err)
	}
	value, signal, how, err := m.Notification(f.FD)
	switch {
	case err != nil:
		return nil, fmt.Errorf("what its signal will carry cannot be read: %w", err)
	case how == sigevNone:
		return &mqNotify{PID: int32(pid)}, nil
	case how != sigevSignal:
		return nil, fmt.Errorf("a thread is to be started for it (SIGEV_THREAD), which is not kept")
	}
	return &mqNotify{PID: int32(pid), Signal: signal, Value: value}, nil
}

// mqNotifyOf is the registration of a process of the tree with the queue of f, if f is the first description
// of it that the process has.
func (s *Scene) mqNotifyOf(f *Found) (*mqNotify, error) {
	pid, err := mqNotified(f.FD)
	if err != nil || pid == 0 || !s.member(pid) {
		return nil, err
	}
	for _, g := range s.sharing(f) {
		if slices.ContainsFunc(g.Slots, func(at Slot) bool { return int(at.PID) == pid }) {
			if g != f {
				return nil, nil
			}
			return readNotify(f, pid)
		}
	}
	return nil, fmt.Errorf("pid %d has registered, and does not have the queue open", pid)
}

// FinishPIDs is Finisher.FinishPIDs: who has registered.
func (k mqueue) FinishPIDs(rec *image.File) ([]int32, error) {
	r, err := k.record(rec)
	if err != nil || r.Notify == nil {
		return nil, err
	}
	return []int32{r.Notify.PID}, nil
}

// Finish is Finisher.Finish: it registers again.
func (k mqueue) Finish(rec *image.File, fd int, p Process) error {
	r, err := k.record(rec)
	if err != nil {
		return err
	}
	b := make([]byte, sigevSize)
	ne := binary.NativeEndian
	ne.PutUint64(b, r.Notify.Value)
	ne.PutUint32(b[8:], uint32(r.Notify.Signal))
	if r.Notify.Signal == 0 {
		ne.PutUint32(b[12:], sigevNone)
	}
	at, err := p.Put(b)
	if err != nil {
		return err
	}
	if _, err := p.Syscall(unix.SYS_MQ_NOTIFY, uint64(fd), at); err != nil {
		return fmt.Errorf("message queue /%s: mq_notify: %w", r.Name, err)
	}
	return nil
}
