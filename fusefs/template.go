package fusefs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"

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
	f.logf("images/%s: a template holds %d MiB of its memory in process %d", im.Name, t.held.Bytes()>>20, t.held.PID())
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

// template makes images/NAME/template.
func (n *savedDir) template(ctx context.Context, im store.Image, out *fuse.EntryOut) *fs.Inode {
	f := n.d.f
	t := &wordNode{f: f, name: fmt.Sprintf("images/%s: template", im.Name), text: n.templateText,
		set: func(_ context.Context, text string) error { return n.setTemplate(strings.TrimSpace(text)) }}
	t.attr(&out.Attr)
	return n.NewInode(ctx, t, fs.StableAttr{Ino: ino(spaceSaved, f.saved.id(im.Name), templatePart)})
}

// templateText says whether there is a template, and what it costs.
func (n *savedDir) templateText() ([]byte, syscall.Errno) {
	im, e := n.image()
	if e != 0 {
		return nil, e
	}
	if t := n.d.f.templates.get(n.d.f.saved.id(im.Name)); t != nil {
		return fmt.Appendf(nil, "on, takes %d MiB of memory in process %d\n", t.Bytes()>>20, t.PID()), 0
	}
	return []byte("off\n"), 0
}

// setTemplate makes or drops the template. It cannot be interrupted, as a restore cannot, and has the same deadline.
func (n *savedDir) setTemplate(word string) error {
	f := n.d.f
	im, e := n.image()
	if e != 0 {
		return e
	}
	switch word {
	case "on":
		ctx, cancel := context.WithTimeout(f.ctx, f.timeout)
		defer cancel()
		return f.makeTemplate(ctx, im)
	case "off":
		return f.templates.drop(f.saved.id(im.Name))
	}
	return failf(syscall.EINVAL, "%q is neither on nor off", word)
}
