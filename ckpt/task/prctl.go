package task

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// pfIOFlusher are the bits of the flags of /proc/PID/stat that PR_SET_IO_FLUSHER sets:
// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE. PR_GET_IO_FLUSHER would ask for CAP_SYS_RESOURCE.
const pfIOFlusher = 0x00080000 | 0x00100000

const (
	mceDefault   = unix.PR_MCE_KILL_DEFAULT
	specSettable = unix.PR_SPEC_ENABLE | unix.PR_SPEC_DISABLE | unix.PR_SPEC_FORCE_DISABLE | unix.PR_SPEC_DISABLE_NOEXEC
)

// specControls are the mitigations of PR_SET_SPECULATION_CTRL and where their setting is kept.
var specControls = [...]struct {
	which uint64
	name  string
	field func(*image.Prctl) *uint32
}{
	{unix.PR_SPEC_STORE_BYPASS, "store bypass", func(p *image.Prctl) *uint32 { return &p.SpecStore }},
	{unix.PR_SPEC_INDIRECT_BRANCH, "indirect branch", func(p *image.Prctl) *uint32 { return &p.SpecBTB }},
	{unix.PR_SPEC_L1D_FLUSH, "L1D flush", func(p *image.Prctl) *uint32 { return &p.SpecL1D }},
}

// readPrctl queues what prctl(2) tells about the thread.
func readPrctl(q *queue, th *image.Thread) {
	p := &th.Prctl
	buf := q.b.Alloc(32)
	call := func(what string, args ...uint64) *ptrace.Ret {
		return q.b.Call(unix.SYS_PRCTL, args...).Label(what)
	}
	call("read the parent-death signal", unix.PR_GET_PDEATHSIG, buf.Addr())
	call("read clear_child_tid", unix.PR_GET_TID_ADDRESS, buf.Addr()+8)
	tsc := call("read the TSC mode", unix.PR_GET_TSC, buf.Addr()+16).Ignore()
	mce := call("read the memory-error policy", unix.PR_MCE_KILL_GET).Ignore()
	slack := call("read the timer slack", unix.PR_GET_TIMERSLACK)
	rseqSlice := call("read the rseq slice extension", unix.PR_RSEQ_SLICE_EXTENSION, unix.PR_RSEQ_SLICE_EXTENSION_GET).Ignore()
	q.then(func() error {
		b := buf.Bytes()
		p.PDeathSig, th.ClearTID = le.Uint32(b), le.Uint64(b[8:])
		th.Sched.TimerSlack = slack.Val()
		p.TSC, p.MCEKill = 0, mceDefault
		if tsc.Err() == nil {
			p.TSC = le.Uint32(b[16:])
		}
		if mce.Err() == nil {
			p.MCEKill = uint32(mce.Val())
		}
		if rseqSlice.Val() != 0 {
			return q.refused(th.TID, "rseq slice extension", "PR_RSEQ_SLICE_EXTENSION is on, which is not kept", "let the program turn it off")
		}
		return nil
	})
	for _, c := range specControls {
		r := call("read the speculation control "+c.name, unix.PR_GET_SPECULATION_CTRL, c.which).Ignore()
		q.then(func() error {
			// Without this bit the setting is the machine's, not the thread's.
			*c.field(p) = 0
			if v := r.Val(); v&unix.PR_SPEC_PRCTL != 0 {
				*c.field(p) = uint32(v)
			}
			return nil
		})
	}
}

// writePrctl queues setting it, but for the parent-death signal, which a change of credentials clears.
func writePrctl(b *ptrace.Batch, th *image.Thread) {
	p := &th.Prctl
	call := func(what string, args ...uint64) {
		b.Call(unix.SYS_PRCTL, args...).Label(what)
	}
	if p.TSC != 0 {
		call("set the TSC mode", unix.PR_SET_TSC, uint64(p.TSC))
	}
	call("set the memory-error policy", unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, uint64(p.MCEKill))
	if p.IOFlusher {
		call("set IO_FLUSHER (it needs CAP_SYS_RESOURCE)", unix.PR_SET_IO_FLUSHER, 1)
	}
	if slack := th.Sched.TimerSlack; slack != 0 { // 0: a realtime thread, which has none
		call("set the timer slack", unix.PR_SET_TIMERSLACK, slack)
	}
	for _, c := range specControls {
		if set, ok := specSetting(*c.field(p), ownSpec(c.which)); ok {
			call("set the speculation control "+c.name, unix.PR_SET_SPECULATION_CTRL, c.which, set)
		}
	}
}

// ownSpec is a speculation control of this thread, which a restored one starts with.
func ownSpec(which uint64) uint32 {
	r, err := unix.PrctlRetInt(unix.PR_GET_SPECULATION_CTRL, uintptr(which), 0, 0, 0)
	if err != nil {
		return unix.PR_SPEC_NOT_AFFECTED
	}
	return uint32(r)
}

// specSetting is what to pass to PR_SET_SPECULATION_CTRL to get from own to want; ok is
// false where nothing is to be done, or where this machine leaves no choice.
func specSetting(want, own uint32) (set uint64, ok bool) {
	if want&unix.PR_SPEC_PRCTL == 0 || own&unix.PR_SPEC_PRCTL == 0 || want == own {
		return 0, false
	}
	return uint64(want & specSettable), true
}

// checkPrctl says what a process with own cannot set.
func checkPrctl(th *image.Thread, own ownCaps) error {
	if th.Prctl.IOFlusher && own.prm&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		return fmt.Errorf("thread %d had IO_FLUSHER set (PR_SET_IO_FLUSHER), which needs CAP_SYS_RESOURCE: restore with that capability", th.TID)
	}
	return nil
}

// readKeyrings queues a look for keyrings of the thread's own. Neither call makes one.
func readKeyrings(q *queue, tid int32) {
	for _, k := range [...]struct {
		id   int
		name string
	}{{unix.KEY_SPEC_THREAD_KEYRING, "thread keyring"}, {unix.KEY_SPEC_PROCESS_KEYRING, "process keyring"}} {
		r := q.b.Call(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, uint64(uint32(k.id)), 0).Label("look for a " + k.name).Ignore()
		q.then(func() error {
			if err := r.Err(); err == nil || errors.Is(err, unix.EACCES) {
				return q.refused(tid, k.name, "keys in it cannot be read from outside", "keep the keys in the user or session keyring instead")
			}
			return nil // ENOKEY: none; ENOSYS: no keyrings here
		})
	}
}
