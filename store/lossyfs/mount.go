package lossyfs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mount shows the filesystem in the folder dir, for other processes: the one that serves
// it must keep away. It needs root. The function it returns unmounts and waits until
// nothing is answered any more.
func (fs *FS) Mount(dir string) (unmount func() error, err error) {
	srv, err := fuse.NewServer(&server{fuse.NewDefaultRawFileSystem(), fs}, dir, &fuse.MountOptions{
		FsName: "lossyfs", Name: "lossyfs", DirectMountStrict: true, DisableReadDirPlus: true, DisableSplice: true, MaxWrite: 1 << 20})
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: %w", dir, err)
	}
	if err := closeOnExec(); err != nil {
		return nil, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	go srv.Serve() // ends with the mount, and unmount waits for it
	if err := srv.WaitMount(); err != nil {
		return nil, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	return func() error {
		err := srv.Unmount()
		if errors.Is(err, syscall.EBUSY) {
			err = errors.Join(fmt.Errorf("somebody still uses %s", dir), unix.Unmount(dir, unix.MNT_DETACH))
		}
		return err
	}, nil
}

// closeOnExec keeps /dev/fuse from the processes started from here on: one that has it
// would keep the mount alive. The library leaves it open with a direct mount.
func closeOnExec() error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || link != "/dev/fuse" {
			continue // not there any more, or something else
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		unix.CloseOnExec(fd)
	}
	return nil
}

// Load returns a filesystem that holds durably what is in the folder dir, and tells these
// lies.
func Load(dir string, lies Lies) (*FS, error) {
	fs := New(lies)
	return fs, fs.load(fs.root, dir)
}

func (fs *FS) load(to *node, dir string) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		path := filepath.Join(dir, e.Name())
		var n *node
		if e.IsDir() {
			n = fs.add(syscall.S_IFDIR | 0o700)
			err = fs.load(n, path)
		} else {
			n = fs.add(syscall.S_IFREG | 0o600)
			n.data, err = os.ReadFile(path)
			fs.persist(n)
		}
		if err != nil {
			return err
		}
		to.bind(rebind{{e.Name(), n}})
	}
	fs.persist(to)
	return nil
}

// Save writes what is seen into the folder dir, which must be empty.
func (fs *FS) Save(dir string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return save(fs.root, dir, map[*node]string{})
}

func save(from *node, dir string, saved map[*node]string) error {
	for _, name := range slices.Sorted(maps.Keys(from.entries)) {
		n, path := from.entries[name], filepath.Join(dir, name)
		var err error
		switch {
		case n.isFolder():
			if err = os.Mkdir(path, os.FileMode(n.mode&0o777)); err == nil {
				err = save(n, path, saved)
			}
		case saved[n] != "":
			err = os.Link(saved[n], path)
		default:
			saved[n] = path
			err = os.WriteFile(path, n.data, os.FileMode(n.mode&0o777))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
