package kind

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// shared returns what stands in e.Shared under key, made by create if it is the first to ask.
func shared[T any](e *Env, key string, create func() (T, error)) (T, error) {
	if v, ok := e.Shared[key].(T); ok {
		return v, nil
	}
	v, err := create()
	if err == nil {
		e.Shared[key] = v
	}
	return v, err
}

// saying guards what once has in Env.Shared: files may be opened at the same time.
var saying sync.Mutex

// once is warn, or "" if it was said before: for another description of the same file, or by
// CheckOpen.
func once(e *Env, warn string) string {
	if warn == "" {
		return ""
	}
	saying.Lock()
	defer saying.Unlock()
	key := "said: " + warn
	if _, ok := e.Shared[key]; ok {
		return ""
	}
	e.Shared[key] = true
	return warn
}

// inodeKey is a key of Env.Shared for one inode of the machine where the image was taken.
func inodeKey(kind string, dev, ino uint64) string {
	return fmt.Sprintf("%s %d:%d/%d", kind, unix.Major(dev), unix.Minor(dev), ino)
}

// output is the one open file description through which everything in the restored tree
// writes that has lost its terminal or reader. There is only one on purpose: who also
// reads from it (a terminal is often open both ways) stands at the end of file then, always,
// and never takes another process's output for input.
type output struct{ fd int }

func (o *output) Close() error { return unix.Close(o.fd) }

// outFile returns a descriptor of the restore's NAME.out.
func outFile(e *Env) (int, error) {
	o, err := shared(e, "output", func() (*output, error) {
		fd, err := e.Out()
		if err != nil {
			return nil, fmt.Errorf("file for the output of the restored tree: %w", err)
		}
		both, err := reopen(fd, unix.O_RDWR|unix.O_APPEND)
		if err != nil {
			e.Warn("output file: %v; reading from a lost terminal fails instead of giving end of file", err)
			return &output{fd}, nil
		}
		unix.Close(fd) // both is the same file
		if _, err := unix.Seek(both, 0, unix.SEEK_END); err != nil {
			unix.Close(both) // never used
			return nil, fmt.Errorf("file for the output of the restored tree: %w", err)
		}
		return &output{both}, nil
	})
	if err != nil {
		return -1, err
	}
	return dup(o.fd)
}

// endOfFile returns a descriptor that reads end of file at once and for ever, and that can be
// polled, which /dev/null cannot.
func endOfFile() (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, fmt.Errorf("pipe2: %w", err)
	}
	unix.Close(p[1]) // that is what makes it read end of file
	return p[0], nil
}
