package ckpt

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/task"
)

// readPolicies reads the NUMA policies of the process's mappings. Shared memory has its policies itself, page by page, and
// mbind(2) splits only the mapping that it is called for: what another mapping shows of it is looked at where it begins
// and ends, and refused if that differs. The one that was split is kept exactly.
func (p *proc) readPolicies() (err error) {
	leader := p.threads[0]
	if err := p.remote.Enter(leader.Thread, leader.state); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remote.Leave()) }()
	var at []uint64
	for i := range p.mem.areas {
		a := &p.mem.areas[i]
		if a.kind == image.VMAVDSO || a.kind == image.VMAVvar {
			continue
		}
		at = append(at, a.Start)
		if last := a.End - pageSize; a.Shared && last != a.Start {
			at = append(at, last)
		}
	}
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
