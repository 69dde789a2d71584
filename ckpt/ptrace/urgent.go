package ptrace

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Fields of siginfo_t.
const (
	siCode = 8

	siTKill = -6 // si_code of tgkill(2)
)

// keepForeign looks at the SIGURG that the entered thread has stopped for. One that is
// not from the end of a batch belongs to the program: it is suppressed here and kept.
// At the end it may have taken the place of ours, which counts once with it.
func (r *Remote) keepForeign(end bool) error {
	if r.stub {
		return nil
	}
	info, err := r.th.sigInfo()
	if err != nil {
		return err
	}
	if end && int32(binary.LittleEndian.Uint32(info[siCode:])) == siTKill {
		return nil
	}
	r.foreignURG = append(r.foreignURG, info)
	return nil
}

// requeue sends the entered thread the foreign signals that were kept, from itself, which
// alone may keep their siginfo. It blocks them and gets them after Leave.
func (r *Remote) requeue() error {
	if len(r.foreignURG) == 0 {
		return nil
	}
	infos := r.foreignURG
	r.foreignURG = nil
	tgid, err := r.Syscall(unix.SYS_GETPID)
	if err != nil {
		return err
	}
	tid, err := r.Syscall(unix.SYS_GETTID)
	if err != nil {
		return err
	}
	for _, info := range infos {
		if err := r.queue(tgid, tid, info); err != nil {
			return fmt.Errorf("thread %d: give it back its SIGURG: %w", r.th.TID, err)
		}
	}
	return nil
}

// queue sends one signal: to the thread, or to the process if it was sent there and this
// thread blocks it, so that another one can take it.
func (r *Remote) queue(tgid, tid uint64, info []byte) error {
	if err := r.write(r.th.t, info, r.scratch.data); err != nil {
		return err
	}
	direct := int32(binary.LittleEndian.Uint32(info[siCode:])) == siTKill
	if !direct && r.st.SigMask&sigBit(unix.SIGURG) != 0 {
		_, err := r.Syscall(unix.SYS_RT_SIGQUEUEINFO, tgid, uint64(unix.SIGURG), r.scratch.data)
		return err
	}
	_, err := r.Syscall(unix.SYS_RT_TGSIGQUEUEINFO, tgid, tid, uint64(unix.SIGURG), r.scratch.data)
	return err
}
