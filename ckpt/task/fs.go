package task

import (
	"fmt"
	"os"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// ReadFS reads working directory, root directory and umask of a thread; tid may be 0 for the
// leader. status is that of the thread, nil: not read yet. Both paths are as seen from here. A working directory that was deleted is reported by
// gone: its path is as it was. It returns *image.RefusedError for another directory that no path
// leads to any more.
func ReadFS(pid, tid int, status *procfs.Status) (f image.FS, gone bool, err error) {
	if status == nil {
		st, err := readStatus(pid, tid)
		if err != nil {
			return f, false, fmt.Errorf("pid %d: %w", pid, err)
		}
		status = &st
	}
	f.Umask = status.Umask
	if f.Cwd, gone, err = cwdPath(pid, tid); err != nil {
		return f, gone, err
	}
	f.Root, err = dirPath(pid, tid, "root", "root directory")
	return f, gone, err
}

// cwdPath returns the working directory of a thread, and whether it was deleted.
func cwdPath(pid, tid int) (path string, gone bool, err error) {
	magic := taskPath(pid, tid, "cwd")
	var st unix.Stat_t
	if err := unix.Stat(magic, &st); err != nil {
		return "", false, fmt.Errorf("pid %d: %w", pid, &os.PathError{Op: "stat", Path: magic, Err: err})
	}
	if st.Nlink == 0 {
		link, err := os.Readlink(magic)
		if path, marked := strings.CutSuffix(link, " (deleted)"); marked {
			return path, true, nil
		}
		if err != nil {
			return "", false, fmt.Errorf("pid %d: %w", pid, err)
		}
	}
	path, err = dirPath(pid, tid, "cwd", "working directory")
	return path, false, err
}

// dirPath reads a link of /proc and makes sure that its path leads back to the same directory:
// it may have been deleted, or hidden by a mount.
func dirPath(pid, tid int, link, kind string) (string, error) {
	p := taskPath(pid, tid, link)
	path, err := os.Readlink(p)
	if err != nil {
		return "", fmt.Errorf("pid %d: %w", pid, err)
	}
	same, err := leadsTo(path, p)
	if err != nil {
		return "", fmt.Errorf("pid %d: %w", pid, err)
	}
	if !same {
		return "", refused(pid, tid, kind, fmt.Sprintf("no path leads to it any more: %q is deleted, moved or hidden by a mount", path),
			"let the program change to another directory, or bring that one back")
	}
	return path, nil
}

// leadsTo says whether path names the very file that a magic link of /proc stands for.
func leadsTo(path, magic string) (bool, error) {
	var want, has unix.Stat_t
	if err := unix.Stat(magic, &want); err != nil {
		return false, &os.PathError{Op: "stat", Path: magic, Err: err}
	}
	if err := unix.Stat(path, &has); err != nil {
		return false, nil // whatever the reason: not by this path
	}
	return want.Dev == has.Dev && want.Ino == has.Ino && want.Mode&unix.S_IFMT == has.Mode&unix.S_IFMT, nil
}

// WriteFS queues working directory, root directory and umask, while the process still has our
// credentials and our root. The working directory comes first: both paths are ours, and chroot(2)
// leaves it where it is. cwd is a path that leads to the working directory, which may have none
// of its own.
func WriteFS(b *ptrace.Batch, fs *image.FS, cwd string) {
	b.Call(unix.SYS_CHDIR, b.Put(append([]byte(cwd), 0)).Addr()).Label("change to the working directory " + fs.Cwd)
	if fs.Root != "/" {
		b.Call(unix.SYS_CHROOT, b.Put(append([]byte(fs.Root), 0)).Addr()).Label("change to the root directory " + fs.Root)
	}
	b.Call(unix.SYS_UMASK, uint64(fs.Umask)).Label("set the umask")
}
