package task

import (
	"errors"
	"fmt"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// Most threads of a process have the credentials and settings of others, and the kernel's memory tells which: of those
// only what is their own is read, from there, and no call has to be made in them.

// Alike are the threads of a process that stands still, as the kernel's memory shows them. They go by their place in a list.
type Alike struct {
	threads []*kmem.ThreadState
	models  []int // which thread each is like, the first such; itself: none before it
}

// fewestAlike is for how many threads the kernel's memory is worth asking.
const fewestAlike = 4

// ManyThreads reports whether ReadAlike will look at so many threads.
func ManyThreads(n int) bool { return n >= fewestAlike }

// PrepareAlike makes ready what ReadAlike needs.
func PrepareAlike() {
	if m, err := kmem.Open(); err == nil {
		m.Prepare()
	}
}

// ReadAlike looks at the threads of a process, before anything is done in them. It returns nil where that cannot be done or is
// not worth it.
func ReadAlike(pid int, tids []int) *Alike {
	if !ManyThreads(len(tids)) || rseqSlices() {
		return nil
	}
	m, err := kmem.Open()
	if err != nil {
		return nil
	}
	all, err := m.ThreadStates(pid)
	if err != nil {
		return nil
	}
	a := &Alike{}
	type key struct {
		kmem.Settings
		mce uint32
	}
	first := map[key]int{}
	for i, tid := range tids {
		s := all[tid]
		if s == nil {
			return nil
		}
		k := key{s.Settings, s.Flags & pfMCE}
		if _, ok := first[k]; !ok {
			first[k] = i
		}
		a.threads, a.models = append(a.threads, s), append(a.models, first[k])
		if s.Settings.Policy != 0 {
			a.models[i] = i // nobody else has it
		}
	}
	return a
}

// Model is the place of the thread that one is like: its own, if it has to be asked itself.
func (a *Alike) Model(i int) int {
	if a == nil {
		return i
	}
	return a.models[i]
}

// rseqSlices reports whether the kernel has the slice extension of rseq(2), which is on or off for each thread and whose place
// in the kernel's memory is not known here.
var rseqSlices = sync.OnceValue(func() bool {
	_, err := unix.PrctlRetInt(unix.PR_RSEQ_SLICE_EXTENSION, unix.PR_RSEQ_SLICE_EXTENSION_GET, 0, 0, 0)
	return !errors.Is(err, unix.EINVAL)
})

// pfMCE are the flags of /proc/PID/stat that PR_MCE_KILL sets: PF_MCE_PROCESS and PF_MCE_EARLY.
const pfMCE = 0x00000080 | 0x08000000

// ReadThreadOutside is ReadThreadOutside for a thread whose model has been read.
func (a *Alike) ReadThreadOutside(i, tid int, th, model *image.Thread) error {
	s := a.threads[i]
	th.TID, th.Comm = int32(tid), s.Comm
	th.Prctl.IOFlusher = s.Flags&pfIOFlusher == pfIOFlusher
	th.Creds = model.Creds
	var err error
	if th.Sched, err = readSched(tid); err == nil {
		th.RobustList, err = robustList(tid)
	}
	if err != nil {
		return fmt.Errorf("thread %d: %w", tid, err)
	}
	return nil
}

// ReadThreadInside is ReadThreadInside for a thread whose model has been read; rsp is its stack pointer.
func (a *Alike) ReadThreadInside(i int, th, model *image.Thread, rsp uint64) {
	s, flusher := a.threads[i], th.Prctl.IOFlusher
	th.Prctl = model.Prctl
	th.Prctl.IOFlusher, th.Prctl.PDeathSig = flusher, s.PDeathSig
	th.Creds.Securebits = model.Creds.Securebits
	th.ClearTID, th.Sched.TimerSlack = s.ClearTID, s.Slack
	th.AltStack = altStack(s.AltStack.SP, s.AltStack.Size, s.AltStack.Flags, rsp)
}

// altStack is what sigaltstack(2) would tell a thread with such a stack pointer.
func altStack(sp, size uint64, set uint32, rsp uint64) image.AltStack {
	flags := set & ssAutoDisarm
	switch {
	case size == 0:
		flags |= ssDisable
	case flags == 0 && rsp > sp && rsp-sp <= size:
		flags |= ssOnStack
	}
	return image.AltStack{SP: sp, Flags: flags, Size: size}
}

// Flags of sigaltstack(2).
const (
	ssDisable    = 2
	ssAutoDisarm = 1 << 31
)
