package fusefs

import (
	"context"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// frozenTree is a tree that was frozen by writing to its state.
type frozenTree struct {
	tree   Frozen
	busy   sync.WaitGroup // its checkpoints that are being stored
	readBy map[int]bool   // processes that have read a complete image since
}

// What ckpt/PID/state reads.
const (
	running = "running"
	frozen  = "frozen"
	killed  = "killed"
)

// state returns what ckpt/PID/state says.
func (f *filesystem) state(id procID) string {
	if f.frozen(id) != nil {
		return frozen
	}
	return running
}

// frozen returns the tree if it is frozen, else nil.
func (f *filesystem) frozen(id procID) *frozenTree {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozenBy[id]
}

// freeze stops a tree until it is thawed, killed or the mount ends.
func (f *filesystem) freeze(ctx context.Context, id procID) error {
	if err := f.lockTaking(ctx); err != nil {
		return err
	}
	defer f.unlockTaking()
	if f.frozen(id) != nil {
		return nil
	}
	if err := f.refuseDeadlock(ctx, id.pid); err != nil {
		return err
	}
	t, err := f.engine.Freeze(ctx, id.pid)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozenBy[id] = &frozenTree{tree: t, readBy: make(map[int]bool)}
	return nil
}

// unfreeze takes a tree out of the list of the frozen ones, once none of its checkpoints is
// being stored any more. It returns nil if it is not frozen. Called with taking locked.
func (f *filesystem) unfreeze(id procID) Frozen {
	f.mu.Lock()
	t := f.frozenBy[id]
	delete(f.frozenBy, id)
	f.mu.Unlock()
	if t == nil {
		return nil
	}
	t.busy.Wait()
	return t.tree
}

// thaw lets a frozen tree go on.
func (f *filesystem) thaw(ctx context.Context, id procID) error {
	if err := f.lockTaking(ctx); err != nil {
		return err
	}
	defer f.unlockTaking()
	if t := f.unfreeze(id); t != nil {
		return t.Thaw()
	}
	return nil
}

// kill ends a tree, frozen or not.
func (f *filesystem) kill(ctx context.Context, id procID) error {
	if err := f.refuseDeadlock(ctx, id.pid); err != nil {
		return err
	}
	if err := f.lockTaking(ctx); err != nil {
		return err
	}
	defer f.unlockTaking()
	t := f.unfreeze(id)
	if t == nil { // frozen first: a tree that runs could make new processes meanwhile
		var err error
		if t, err = f.engine.Freeze(ctx, id.pid); err != nil {
			return err
		}
	}
	return t.Kill()
}

// thawAll lets every frozen tree go on; the mount ends and no stream runs any more.
func (f *filesystem) thawAll() {
	f.mu.Lock()
	all := f.frozenBy
	f.frozenBy = make(map[procID]*frozenTree)
	f.mu.Unlock()
	for id, t := range all {
		t.busy.Wait()
		if err := t.tree.Thaw(); err != nil {
			f.logf("pid %d: cannot let it run on: %v", id.pid, err)
		}
	}
}

// wasRead notes that a process has read a complete image of a tree, if that is frozen.
func (f *filesystem) wasRead(r reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.frozenBy[r.target]; t != nil {
		t.readBy[r.tgid] = true
	}
}

// take ends a tree whose image the caller has taken away with mv.
func (f *filesystem) take(ctx context.Context, id procID, tgid int) error {
	f.mu.Lock()
	t := f.frozenBy[id]
	read := t != nil && t.readBy[tgid]
	f.mu.Unlock()
	switch {
	case t == nil:
		return failf(syscall.EPERM, "the tree runs on, so its image cannot be moved away: write frozen to state first, or use cp")
	case !read:
		return failf(syscall.EPERM, "its image was not read completely while it was frozen")
	}
	return f.kill(ctx, id)
}

// stateNode is ckpt/PID/state.
func (f *filesystem) stateNode(p *process) *wordNode {
	id := procID{p.pid, p.start}
	return f.wordNode(p, "state", func() string { return f.state(id) + "\n" },
		func(ctx context.Context, text string) error { return f.setState(ctx, id, strings.TrimSpace(text)) })
}

// setState does what was written to ckpt/PID/state.
func (f *filesystem) setState(ctx context.Context, id procID, word string) error {
	switch word {
	case frozen:
		return f.freeze(ctx, id)
	case running:
		return f.thaw(ctx, id)
	case killed:
		return f.kill(ctx, id)
	}
	return failf(syscall.EINVAL, "state takes running, frozen or killed, not %q", word)
}

// onlyTruncated refuses to change mode or owner of a file that takes words; truncating it means nothing.
func onlyTruncated(in *fuse.SetAttrIn) syscall.Errno {
	_, mode := in.GetMode()
	_, uid := in.GetUID()
	if mode || uid {
		return syscall.EPERM
	}
	return 0
}
