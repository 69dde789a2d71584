package task

import (
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// ReadFS reads working directory, root directory and umask of a thread; tid may be 0 for the
// leader. Both paths are as seen from here. It returns *image.RefusedError for a directory that no
// path leads to any more.
func ReadFS(pid, tid int) (image.FS, error) {
	var f image.FS
	st, err := readStatus(pid, tid)
	if err != nil {
		return f, fmt.Errorf("pid %d: %w", pid, err)
	}
	f.Umask = st.Umask
	if f.Cwd, err = dirPath(pid, tid, "cwd", "working directory"); err != nil {
		return f, err
	}
	f.Root, err = dirPath(pid, tid, "root", "root directory")
	return f, err
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
// leaves it where it is.
func WriteFS(b *ptrace.Batch, fs *image.FS) {
	b.Call(unix.SYS_CHDIR, b.Put(append([]byte(fs.Cwd), 0)).Addr()).Label("change to the working directory " + fs.Cwd)
	if fs.Root != "/" {
		b.Call(unix.SYS_CHROOT, b.Put(append([]byte(fs.Root), 0)).Addr()).Label("change to the root directory " + fs.Root)
	}
	b.Call(unix.SYS_UMASK, uint64(fs.Umask)).Label("set the umask")
}
