package task

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// Sizes and numbers of the kernel's signal interface on x86_64.
const (
	sigsetSize    = 8  // kernel sigset_t
	sigactionSize = 32 // kernel struct sigaction: handler, flags, restorer, mask
	siginfoSize   = 128
	stackSize     = 24 // stack_t: sp, flags and padding, size
	lastSignal    = 64

	ssOnStack = 1 // SS_ONSTACK
)

// settable says whether sigaction(2) takes the signal.
func settable(sig int) bool { return sig != int(unix.SIGKILL) && sig != int(unix.SIGSTOP) }

// readSighand queues rt_sigaction for every signal. Asking only for those that /proc/PID/status
// shows as caught or ignored would miss flags on a default action, such as SA_NOCLDWAIT.
func readSighand(q *queue, sh *image.Sighand) {
	buf := q.b.Alloc(lastSignal * sigactionSize)
	for sig := 1; sig <= lastSignal; sig++ {
		if settable(sig) {
			q.b.Call(unix.SYS_RT_SIGACTION, uint64(sig), 0, buf.Addr()+uint64((sig-1)*sigactionSize), sigsetSize).
				Label(fmt.Sprintf("read the action of signal %d", sig))
		}
	}
	q.then(func() error {
		sh.Actions = decodeActions(buf.Bytes())
		return nil
	})
}

// decodeActions reads 64 struct sigaction and leaves out those that say nothing.
func decodeActions(b []byte) []image.Sigaction {
	var all []image.Sigaction
	for sig := 1; sig <= lastSignal; sig++ {
		p := b[(sig-1)*sigactionSize:]
		a := image.Sigaction{
			Signal: int32(sig), Handler: le.Uint64(p), Flags: le.Uint64(p[8:]), Restorer: le.Uint64(p[16:]), Mask: le.Uint64(p[24:]),
		}
		if a != (image.Sigaction{Signal: int32(sig)}) {
			all = append(all, a)
		}
	}
	return all
}

// encodeActions is the inverse of decodeActions; signals without an action get the default.
func encodeActions(all []image.Sigaction) []byte {
	b := make([]byte, lastSignal*sigactionSize)
	for _, a := range all {
		if a.Signal < 1 || a.Signal > lastSignal {
			continue
		}
		p := b[(a.Signal-1)*sigactionSize:]
		le.PutUint64(p, a.Handler)
		le.PutUint64(p[8:], a.Flags)
		le.PutUint64(p[16:], a.Restorer)
		le.PutUint64(p[24:], a.Mask)
	}
	return b
}

// WriteSighand queues the signal actions, one after the other all of them: the process may
// have inherited ignored signals from the restorer. It comes before WriteLast, since ignoring a
// signal throws away what is pending of it.
func WriteSighand(b *ptrace.Batch, sh *image.Sighand) {
	buf := b.Put(encodeActions(sh.Actions))
	for sig := 1; sig <= lastSignal; sig++ {
		if settable(sig) {
			b.Call(unix.SYS_RT_SIGACTION, uint64(sig), buf.Addr()+uint64((sig-1)*sigactionSize), 0, sigsetSize).
				Label(fmt.Sprintf("set the action of signal %d", sig))
		}
	}
}

// readAltStack queues sigaltstack(2). It shows SS_ONSTACK if the thread is running on it.
func readAltStack(q *queue, as *image.AltStack) {
	buf := q.b.Alloc(stackSize)
	q.b.Call(unix.SYS_SIGALTSTACK, 0, buf.Addr()).Label("read the alternate signal stack")
	q.then(func() error {
		p := buf.Bytes()
		*as = image.AltStack{SP: le.Uint64(p), Flags: le.Uint32(p[8:]), Size: le.Uint64(p[16:])}
		return nil
	})
}

// writeAltStack queues setting it. Whether a thread is on the stack shows in its stack
// pointer, so SS_ONSTACK is not something that is set.
func writeAltStack(b *ptrace.Batch, as *image.AltStack) {
	p := make([]byte, stackSize)
	le.PutUint64(p, as.SP)
	le.PutUint32(p[8:], as.Flags&^ssOnStack)
	le.PutUint64(p[16:], as.Size)
	b.Call(unix.SYS_SIGALTSTACK, b.Put(p).Addr(), 0).Label("set the alternate signal stack")
}
