package fusefs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
)

// policies are those of the mount, and what was written to ckpt/PID/policy.
type policies struct {
	mount     policy.Set
	mu        sync.Mutex
	byProcess map[procID]policy.Set
}

// manyPolicies is how many processes may have policies of their own before those that have ended
// are looked for.
const manyPolicies = 256

// of returns the policies for a checkpoint of a process.
func (p *policies) of(id procID) policy.Set {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byProcess[id].Over(p.mount)
}

// forRestore returns the policies of the mount that an image says nothing about.
func (p *policies) forRestore(m *image.Manifest) policy.Set {
	left := p.mount.Over(nil)
	for _, w := range m.Policies {
		name, _, _ := strings.Cut(w, "=")
		delete(left, name)
	}
	return left
}

// set takes what was written for a process: KEY=VALUE words that are added to the others, or the
// word default, which forgets all of them.
func (p *policies) set(id procID, text string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.TrimSpace(text) == "default" {
		delete(p.byProcess, id)
		return nil
	}
	own := p.byProcess[id].Over(nil)
	if err := own.Add(text); err != nil {
		return failf(syscall.EINVAL, "%v", err)
	}
	if len(p.byProcess) >= manyPolicies {
		p.forgetEnded()
	}
	p.byProcess[id] = own
	return nil
}

// forgetEnded drops the policies of processes that are there no more. Called with mu held.
func (p *policies) forgetEnded() {
	for id := range p.byProcess {
		if now, err := readProcess(id.pid); err != nil || now.start != id.start {
			delete(p.byProcess, id)
		}
	}
}

// text lists every policy with its value, as it can be written back.
func (p *policies) text(id procID) string {
	var b strings.Builder
	set := p.of(id)
	for _, k := range policy.All() {
		fmt.Fprintf(&b, "%s=%s\n", k.Name, set.Get(k.Name))
	}
	return b.String()
}

// policyNode is ckpt/PID/policy.
func (f *filesystem) policyNode(p *process) *wordNode {
	id := procID{p.pid, p.start}
	return f.wordNode(p, "policy", func() string { return f.policies.text(id) },
		func(_ context.Context, text string) error { return f.policies.set(id, text) })
}
