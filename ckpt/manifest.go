package ckpt

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// finishManifest adds the memory to the manifest: which pages there are is read from the
// snapshots while the tree runs on. Afterwards the image's size is known.
func (c *Checkpoint) finishManifest(s *survey) error {
	if err := c.segs.finish(); err != nil {
		return err
	}
	c.m.Segments = c.segs.list
	err := allProcs(len(c.procs), func(i int) error {
		p := c.procs[i]
		if p.mem.snap != nil {
			if err := errors.Join(p.refine(), p.checkPolicies()); err != nil {
				return err
			}
		} else if p.mem.copiedOnly {
			if err := p.confirm(); err != nil {
				return err
			}
		}
		return c.addVMAs(&c.m.MMs[i], p)
	})
	if err != nil {
		return err
	}
	for _, f := range s.findings { // what the files lose was found again in the freeze
		if f.Severity == image.Lose && f.FD == image.NoFD {
			c.m.Lost = append(c.m.Lost, f)
		}
	}
	c.m.Lost = unique(c.m.Lost)
	c.m.Policies = c.o.Policy.Words()
	c.m.Tool = strings.TrimSpace("ckptfs " + c.o.Version)
	if len(c.m.Tasks) > 0 && len(c.m.Tasks[0].Threads) > 0 {
		x := c.m.Tasks[0].Threads[0].XState
		c.m.Host.XStateLen, c.m.Host.XFeatures = uint32(len(x)), xfeatures(x)
	}
	var check func() error
	if c.head, c.layout, check, err = image.EncodeAhead(&c.m); err != nil {
		return err
	}
	c.checked = make(chan error, 1)
	go func() { c.checked <- check() }() // Stream waits for it
	c.findSame()
	c.settleTracking()
	return nil
}

// addVMAs describes the mappings of one process with the pages that belong to them.
func (c *Checkpoint) addVMAs(mm *image.MM, p *proc) error {
	sc, err := newScanner(p.mem.pid)
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	defer sc.close()
	mm.VMAs = make([]image.VMA, 0, len(p.mem.areas))
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		v := a.vma()
		v.MemPolicy, v.AIO = p.policies[a.Start], p.aio[a.Start]
		if a.kind == image.VMASegment {
			if v.Segment = c.segs.refs[a.inode()]; v.Segment == 0 {
				return fmt.Errorf("pid %d: shared memory at %#x was not captured: %w", p.pid, a.Start, errRaced)
			}
		}
		if v.Extents, v.Guards, err = p.pagesOf(sc, a); err != nil {
			return err
		}
		mm.VMAs = append(mm.VMAs, v)
	}
	return nil
}

// pagesOf finds the pages of an area that go into the image, and its guard regions: in the
// freeze, if a fork did not pass them on, or else in the snapshot.
func (p *proc) pagesOf(sc *scanner, a *area) (extents, guards []image.Extent, err error) {
	if h := p.mem.held[a.Start]; h != nil {
		return h.extents, h.guards, nil
	}
	if t := p.mem.tracked[a.Start]; t != nil {
		return t.pages, t.guards, nil
	}
	if a.hasPages() {
		return sc.pages(a)
	}
	guards, err = sc.guardsOf(a)
	return nil, guards, err
}

// Estimate is an upper estimate, in bytes and never 0, of the image that a checkpoint of the
// tree below pid would give now. It freezes nothing and reads only what is cheap to read.
func Estimate(pid int) (int64, error) {
	pids, err := Tree(pid)
	if err != nil {
		return 0, err
	}
	total := int64(1<<20) + yetToCome(pids)
	for _, p := range pids {
		st, err := readStatus(p)
		if err != nil {
			continue // it ended meanwhile, or it is a zombie
		}
		tids, _ := threads(p)
		total += int64(st.VmRSS+st.VmSwap) + int64(len(tids))*16<<10 + heldByFDs(p) + heldByMaps(p)
	}
	return (total + total/16 + 1<<20) &^ int64(pageSize-1), nil
}

// heldByFDs is about how much the open files of a process add to an image: unlinked files
// and memfds go along whole.
func heldByFDs(pid int) int64 {
	nums, err := quickread.Numbers(procPath(pid, "fd"))
	if err != nil {
		return 0
	}
	total := int64(len(nums)) * 1024
	for _, n := range nums {
		path := procPath(pid, fmt.Sprintf("fd/%d", n))
		link, err := os.Readlink(path)
		if err != nil {
			continue
		}
		switch {
		case strings.HasPrefix(link, "pipe:"):
			total += 64 << 10
		case strings.HasSuffix(link, " (deleted)"):
			if st, err := os.Stat(path); err == nil {
				total += st.Size()
			}
		}
	}
	return total
}

// heldByMaps is about how much the deleted files that a process maps add to an image.
func heldByMaps(pid int) (total int64) {
	maps, err := readMaps(pid)
	if err != nil {
		return 0
	}
	seen := map[inode]bool{}
	for i := range maps {
		m := &maps[i]
		key := inode{m.Dev, m.Ino}
		if !m.Deleted || isSegment(m) || isHuge(m) || seen[key] {
			continue
		}
		seen[key] = true
		var st unix.Stat_t
		if unix.Stat(mapFile(pid, m), &st) == nil {
			total += st.Blocks * 512
		}
	}
	return total
}

// PIDs lists the processes of the checkpoint, the root first.
func (c *Checkpoint) PIDs() []int {
	out := make([]int, 0, len(c.m.Tasks))
	for i := range c.m.Tasks {
		out = append(out, int(c.m.Tasks[i].PID))
	}
	return slices.Clip(out)
}
