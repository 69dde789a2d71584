package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/fusefs"
	"github.com/ckptfs/ckptfs/restore"
	"golang.org/x/sys/unix"
)

// mountedImage is MOUNT/images/NAME/image.
type mountedImage struct {
	path, mount, name string
}

// withTemplate finds out whether a file is an image of a mount that holds its memory ready: only the mount itself can
// share that. Not if a flag says what the mount does not do.
func (f *restoreFlags) withTemplate(path string) (m mountedImage, ok bool) {
	for _, own := range []string{"out", "policy", "strict", "stopped", "timeout", "lazy", "lazy-rate"} {
		if f.flags.Changed(own) {
			return m, false
		}
	}
	abs, err := filepath.Abs(path)
	if err != nil || filepath.Base(abs) != "image" {
		return m, false
	}
	dir := filepath.Dir(abs)
	m = mountedImage{path: abs, mount: filepath.Dir(filepath.Dir(dir)), name: filepath.Base(dir)}
	if filepath.Dir(dir) != filepath.Join(m.mount, "images") {
		return m, false
	}
	if _, err := fusefs.ServerPID(m.mount); err != nil {
		return m, false
	}
	state, err := os.ReadFile(filepath.Join(dir, "template"))
	return m, err == nil && bytes.HasPrefix(state, []byte("on"))
}

// mountStatus is what the command needs of restore/NAME.status.
type mountStatus struct {
	Error    string
	Root     int
	PIDs     []int
	Warnings []string
	Lost     []image.Finding
	Shared   int64
}

// restore has the mount restore the image: what cp to MOUNT/restore does.
func (m mountedImage) restore(c *console, verbose bool) (*restore.Result, error) {
	to := filepath.Join(m.mount, "restore", fmt.Sprintf("%s-%d", m.name, os.Getpid()))
	err := copyInMount(m.path, to)
	var st mountStatus
	b, serr := os.ReadFile(to + ".status")
	if serr == nil {
		serr = json.Unmarshal(b, &st)
	}
	if verbose {
		if l, err := os.ReadFile(to + ".log"); err == nil { // it only tells
			c.notef("%s", bytes.TrimSpace(l))
		}
	}
	switch {
	case err != nil && st.Error != "":
		return nil, mountError{fmt.Sprintf("the mount on %s: %s", m.mount, st.Error), err}
	case err != nil:
		return nil, err
	case serr != nil:
		return nil, fmt.Errorf("it is restored, but how: %w", serr)
	}
	return &restore.Result{Root: st.Root, PIDs: st.PIDs, Warnings: st.Warnings, Lost: st.Lost, Shared: st.Shared}, nil
}

// copyInMount copies a file without moving its bytes. The error of a restore is that of the close.
func copyInMount(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() // only read
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src) // by copy_file_range(2)
	return errors.Join(err, dst.Close())
}

// mountError is an error that a mount has told.
type mountError struct {
	text string
	err  error // with an errno
}

func (e mountError) Error() string { return e.text }

// Unwrap turns the errno of the mount into what an exit code depends on.
func (e mountError) Unwrap() error {
	switch {
	case errors.Is(e.err, unix.EEXIST): // a pid is taken
		return unix.ESRCH
	case errors.Is(e.err, unix.EBADMSG):
		return image.ErrCorrupt
	case errors.Is(e.err, unix.EOPNOTSUPP):
		return unix.ENOSYS
	}
	return e.err
}
