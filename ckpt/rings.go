package ckpt

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/ckptfs/ckptfs/ckpt/task"
)

// checkRingMaps refuses mappings of an io_uring that the process has closed: nobody could map it again.
func (c *Checkpoint) checkRingMaps() error {
	var all []image.Finding
	for _, p := range c.procs {
		for i := range p.mem.areas {
			a := &p.mem.areas[i]
			if a.kind != image.VMARing || kind.RingMapped(c.m.Files, int32(p.pid), a.Start) {
				continue
			}
			all = append(all, image.Finding{Severity: image.Refuse, PID: int32(p.pid), FD: image.NoFD, Addr: a.Start, Kind: a.Path,
				What: "it maps an io_uring that it has closed, or a part of one", Remedy: "let the program unmap it"})
		}
	}
	return image.Refusals(all)
}

// checkRingThreads refuses what threads have set for themselves with io_uring.
func (s *survey) checkRingThreads(pid int) {
	if what, err := kind.RingThreads(pid); err == nil && what != "" { // what could not be read has changed meanwhile
		s.findings = append(s.findings, image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Kind: "io_uring",
			What: what, Remedy: "run the program without io_uring"})
	}
}

// isRingWorker reports whether a thread is one that the kernel runs for io_uring. It never stops for a tracer, and runs no
// code of the program: it does what requests want, and there are none in flight (kind.QuietRings).
// known is what briefs tells.
func isRingWorker(pid, tid int, known map[int]kmem.ThreadBrief) bool {
	if b, ok := known[tid]; ok {
		return b.Flags&task.IOWorker != 0
	}
	b, err := quickread.File(procPath(pid, fmt.Sprintf("task/%d/stat", tid)))
	if err != nil {
		return false
	}
	st, err := procfs.ParseStat(b)
	return err == nil && st.Flags&task.IOWorker != 0
}
