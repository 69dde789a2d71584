package ckpt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/ckptfs/ckptfs/ckpt/task"
)

// A system call for each mapping would take longer than all else in the freeze, for the sake of very few programs. So they are
// only made where time does not matter, or when a checkpoint before has found policies: /proc/PID/numa_maps of the
// snapshot tells that there are some, but not all of them.

// errPolicies says that a checkpoint has to ask about the policies of mappings.
var errPolicies = errors.New("memory of it has a NUMA policy")

// checkPolicies fails if the snapshot of a process has NUMA policies that nobody has asked for.
func (p *proc) checkPolicies() error {
	if p.mem.snap == nil || p.asked {
		return nil
	}
	b, err := quickread.File(procPath(p.mem.pid, "numa_maps"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without NUMA
	}
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.pid, err)
	}
	if addr, policy := findPolicy(b); policy != "" {
		return fmt.Errorf("pid %d at %#x: %w (%s)", p.pid, addr, errPolicies, policy)
	}
	return nil
}

// findPolicy returns the first mapping of /proc/PID/numa_maps with a policy other than "default".
func findPolicy(b []byte) (addr uint64, policy string) {
	for line := range bytes.Lines(b) {
		f := bytes.SplitN(bytes.TrimSpace(line), []byte(" "), 3) // the third is long
		if len(f) < 2 || string(f[1]) == "default" {
			continue
		}
		if addr, err := strconv.ParseUint(string(f[0]), 16, 64); err == nil {
			return addr, string(f[1])
		}
	}
	return 0, ""
}

// readPolicies reads the NUMA policies of the process's mappings: of all, or of those that will not be in its snapshot. Shared memory has its policies itself, page by page, and
// mbind(2) splits only the mapping that it is called for: what another mapping shows of it is looked at where it begins
// and ends, and refused if that differs. The one that was split is kept exactly.
func (p *proc) readPolicies(all bool) (err error) {
	p.asked = all
	var at []uint64
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		if a.kind == image.VMAVDSO || a.kind == image.VMAVvar || a.kind == image.VMARing || a.kind == image.VMAAIO || !all && !a.HasFlag("dc") && !a.sysv() {
			continue
		}
		at = append(at, a.Start)
		if last := a.End - pageSize; a.Shared && last != a.Start {
			at = append(at, last)
		}
	}
	if len(at) == 0 {
		return nil
	}
	leader := p.threads[0]
	if err := p.remote.Enter(leader.Thread, leader.state); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remote.Leave()) }()
	if p.policies, err = task.ReadPolicies(p.remote.NewBatch, at); err != nil {
		return err
	}
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		if last := a.End - pageSize; a.Shared && last != a.Start && !samePolicy(p.policies[a.Start], p.policies[last]) {
			return &image.RefusedError{Findings: []image.Finding{{Severity: image.Refuse, PID: int32(p.pid), FD: image.NoFD, Addr: a.Start, Kind: "memory policy",
				What:   fmt.Sprintf("the shared memory at %#x-%#x has a NUMA policy in one part and not in another, by way of another mapping", a.Start, a.End),
				Remedy: "let the program call mbind(2) for all of it"}}}
		}
	}
	return nil
}

func samePolicy(a, b *image.MemPolicy) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Mode == b.Mode && string(a.Nodes) == string(b.Nodes)
}
