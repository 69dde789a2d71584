package fusefs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// templateName is a file of images/NAME/ that is not listed, so that rm -r and backups see only what is stored.
const templateName = "template"

// templatePart is its part of an inode number, which no file of the image has.
const templatePart = 0xff

// templates are the images whose memory is held ready, by savedNames.id.
type templates struct {
	mu   sync.Mutex
	over bool // the mount ends
	byID map[uint64]*template
}

// template is one of them. It has no memory while it is being made.
type template struct {
	root image.Hash
	held Template
}

// get returns the template of an image that can be used, or nil.
func (s *templates) get(id uint64) Template {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.byID[id]; t != nil && t.held != nil && !t.held.Gone() {
		return t.held
	}
	return nil
}

// of returns a template of the image with that identity, or nil.
func (s *templates) of(root image.Hash) Template {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.byID {
		if t.held != nil && t.root == root && !t.held.Gone() {
			return t.held
		}
	}
	return nil
}

// bytes is how much memory the template of an image takes.
func (s *templates) bytes(id uint64) int64 {
	if t := s.get(id); t != nil {
		return t.Bytes()
	}
	return 0
}

// has reports whether an image has a template, or will have one.
func (s *templates) has(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id] != nil
}

// reserve makes room for a template, for its maker alone. It returns nil if there is one already.
func (s *templates) reserve(id uint64) (*template, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.byID[id]
	switch {
	case s.over:
		return nil, errEnds
	case t == nil:
		s.byID[id] = &template{}
		return s.byID[id], nil
	case t.held == nil:
		return nil, failf(syscall.EBUSY, "it is just being made")
	}
	return nil, nil
}

// set puts a template where reserve has made room, or gives the room back if there is none. It reports
// whether the template is wanted still: the image may have been removed meanwhile.
func (s *templates) set(id uint64, room, t *template) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[id] != room {
		return false
	}
	if t == nil {
		delete(s.byID, id)
		return false
	}
	s.byID[id] = t
	return true
}

// drop gives a template up. It waits for a restore that uses it.
func (s *templates) drop(id uint64) error {
	s.mu.Lock()
	t := s.byID[id]
	delete(s.byID, id)
	s.mu.Unlock()
	if t == nil || t.held == nil {
		return nil
	}
	return t.held.Close()
}

// end drops all of them.
func (s *templates) end() {
	s.mu.Lock()
	s.over = true
	all := s.byID
	s.byID = nil
	s.mu.Unlock()
	for _, t := range all {
		if t.held != nil {
			_ = t.held.Close() // we end, and it with us
		}
	}
}

// forgetImage drops what is known of an image that was removed from the store.
func (f *filesystem) forgetImage(name string) {
	if err := f.templates.drop(f.saved.id(name)); err != nil {
		f.logf("images/%s: end its template: %v", name, err)
	}
	f.saved.forget(name)
}

// spares reports whether an image is in use, so that the policy must not remove it.
func (f *filesystem) spares(name string) bool {
	return f.collector.isOpening(name) || f.templates.has(f.saved.id(name))
}

// makeTemplate verifies an image and holds its memory ready.
func (f *filesystem) makeTemplate(ctx context.Context, im store.Image) error {
	id := f.saved.id(im.Name)
	f.dropGone(id)
	room, err := f.templates.reserve(id)
	if err != nil || room == nil {
		return err
	}
	t, err := f.readTemplate(ctx, im)
	if !f.templates.set(id, room, t) {
		if t == nil {
			return err
		}
		return errors.Join(failf(syscall.ENOENT, "the image was removed meanwhile"), t.held.Close())
	}
	f.logf("images/%s: template on: %d MiB of memory in process %d", im.Name, t.held.Bytes()>>20, t.held.PID())
	return nil
}

// dropGone drops a template whose process was killed.
func (f *filesystem) dropGone(id uint64) {
	s := &f.templates
	s.mu.Lock()
	t := s.byID[id]
	dead := t != nil && t.held != nil && t.held.Gone()
	s.mu.Unlock()
	if dead {
		_ = s.drop(id) // it was killed: there is nothing to end
	}
}

func (f *filesystem) readTemplate(ctx context.Context, im store.Image) (*template, error) {
	src, err := f.store.OpenImage(im.Name)
	if err != nil {
		return nil, err
	}
	defer src.Close() // only read
	r, err := image.Open(src, src.Size())
	if err != nil {
		return nil, err
	}
	if err := r.Verify(ctx, func(int64, int64) {}); err != nil {
		return nil, err
	}
	held, err := f.engine.Template(ctx, r)
	if err != nil {
		return nil, err
	}
	return &template{root: r.Root(), held: held}, nil
}

// templateNode is images/NAME/template.
type templateNode struct {
	fs.Inode
	dir *savedDir
}

// templateHandle is an open template file. A write acts at once, as one to state.
type templateHandle struct{ n *templateNode }

// template makes the node.
func (n *savedDir) template(ctx context.Context, im store.Image, out *fuse.EntryOut) *fs.Inode {
	t := &templateNode{dir: n}
	t.attr(&out.Attr)
	return n.NewInode(ctx, t, fs.StableAttr{Ino: ino(spaceSaved, n.d.f.saved.id(im.Name), templatePart)})
}

// text says whether there is a template, and what it costs.
func (n *templateNode) text() ([]byte, syscall.Errno) {
	im, e := n.dir.image()
	if e != 0 {
		return nil, e
	}
	if t := n.dir.d.f.templates.get(n.dir.d.f.saved.id(im.Name)); t != nil {
		return fmt.Appendf(nil, "on, takes %d MiB of memory in process %d\n", t.Bytes()>>20, t.PID()), 0
	}
	return []byte("off\n"), 0
}

func (n *templateNode) attr(a *fuse.Attr) syscall.Errno {
	b, e := n.text()
	setAttr(a, 0o600, int64(len(b)), 0, 0, time.Now())
	return e
}

func (n *templateNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return n.attr(&out.Attr)
}

// Setattr accepts the truncation that `echo on > template` starts with.
func (n *templateNode) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if e := n.attr(&out.Attr); e != 0 {
		return e
	}
	return onlyTruncated(in)
}

func (n *templateNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &templateHandle{n}, fuse.FOPEN_DIRECT_IO, 0
}

func (h *templateHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	b, e := h.n.text()
	if e != 0 {
		return nil, e
	}
	return (&textHandle{b}).Read(ctx, dest, off)
}

// Write makes or drops the template. It cannot be interrupted, as a restore cannot, and has the same deadline.
func (h *templateHandle) Write(_ context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	f := h.n.dir.d.f
	im, e := h.n.dir.image()
	if e != 0 {
		return 0, e
	}
	word := strings.TrimSpace(string(data))
	var err error
	switch word {
	case "on":
		ctx, cancel := context.WithTimeout(f.ctx, f.timeout)
		defer cancel()
		err = f.makeTemplate(ctx, im)
	case "off":
		if err = f.templates.drop(f.saved.id(im.Name)); err == nil {
			f.logf("images/%s: template off", im.Name)
		}
	default:
		err = failf(syscall.EINVAL, "%q is neither on nor off", word)
	}
	if err != nil {
		f.logf("images/%s: template: %v", im.Name, err)
		return 0, neverEINTR(errno(err))
	}
	return uint32(len(data)), 0
}
