package fusefs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
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
func (p *policies) text(id procID) []byte {
	var b strings.Builder
	set := p.of(id)
	for _, k := range policy.All() {
		fmt.Fprintf(&b, "%s=%s\n", k.Name, set.Get(k.Name))
	}
	return []byte(b.String())
}

// policyNode is ckpt/PID/policy.
type policyNode struct {
	fs.Inode
	f        *filesystem
	id       procID
	uid, gid uint32
}

// policyHandle is an open policy file. A write acts at once, as one to state.
type policyHandle struct{ n *policyNode }

func (n *policyNode) attr(a *fuse.Attr) {
	setAttr(a, 0o600, int64(len(n.f.policies.text(n.id))), n.uid, n.gid, time.Now())
}

func (n *policyNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return 0
}

// Setattr accepts the truncation that `echo tcp=keep > policy` starts with.
func (n *policyNode) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	return onlyTruncated(in)
}

func (n *policyNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &policyHandle{n}, fuse.FOPEN_DIRECT_IO, 0
}

func (h *policyHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	t := &textHandle{h.n.f.policies.text(h.n.id)}
	return t.Read(ctx, dest, off)
}

func (h *policyHandle) Write(_ context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	n := h.n
	if err := n.f.policies.set(n.id, string(data)); err != nil {
		n.f.logf("pid %d: policy: %v", n.id.pid, err)
		return 0, errno(err)
	}
	n.f.logf("pid %d: policy %s", n.id.pid, strings.Join(strings.Fields(string(data)), " "))
	return uint32(len(data)), 0
}
