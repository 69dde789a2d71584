package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/store"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options say what to mount.
type Options struct {
	Dir            string // where to; an existing directory
	Source         string // what df and mount show, for example the folder of the store
	Engine         Engine
	Store          *store.Store
	Spool          string                           // folder for uploads and NAME.out files; must exist
	Private        bool                             // keep uploads in memory and not in Spool
	Keep           store.Policy                     // which images stay in the store; Spare is set here
	Policy         policy.Set                       // for every checkpoint and, where the image has none, every restore
	Track          TrackMode                        // for processes of which nobody says otherwise; "": TrackAuto
	RestoreTimeout time.Duration                    // for one restore, verifying included; 0: two minutes
	Logf           func(format string, args ...any) // one line per call
}

// Server is a mounted filesystem.
type Server struct {
	f    *filesystem
	fuse *fuse.Server
	dir  string
}

// Mount mounts the filesystem and serves it until Unmount or umount(2). When it returns, the
// mount can be used, by other processes: this one must never touch it.
func Mount(o Options) (*Server, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := CheckDir(dir); err != nil {
		return nil, err
	}
	if o.RestoreTimeout == 0 {
		o.RestoreTimeout = 2 * time.Minute
	}
	if o.Track == "" {
		o.Track = TrackAuto
	}
	ctx, stop := context.WithCancelCause(context.Background())
	f := &filesystem{engine: o.Engine, store: o.Store, spool: o.Spool, private: o.Private, logf: o.Logf, timeout: o.RestoreTimeout, ctx: ctx, stop: stop,
		collector: newCollector(o.Keep, ctx.Done()), settler: newSettler(time.Now()), taking: make(chan struct{}, 1), records: make(map[procID]*record), imageOf: make(map[reader]*imageNode),
		frozenBy: make(map[procID]*frozenTree), policies: policies{mount: o.Policy, byProcess: make(map[procID]policy.Set)},
		trackers: trackers{mount: o.Track, byProcess: make(map[procID]*following)}}
	f.saved.byName = make(map[string]*savedName)
	f.uploads.byName, f.lazyUploads.byName = make(map[string]*upload), make(map[string]*upload)
	f.templates.byID = make(map[uint64]*template)
	srv, err := fs.Mount(dir, &rootDir{f: f}, mountOptions(o))
	if err != nil {
		stop(err)
		return nil, fmt.Errorf("mounting on %s: %w", dir, err)
	}
	if err := widenReadAhead(dir); err != nil { // then reading an image again is not as fast
		o.Logf("the kernel's read-ahead stays as it is: %v", err)
	}
	f.collector.look() // the policy may be another one than last time
	f.streams.Go(f.collect)
	poke(f.settler.due) // what the last mount left
	f.streams.Go(f.settle)
	f.streams.Go(f.sweepTrackers)
	s := &Server{f: f, fuse: srv, dir: dir}
	if err := closeOnExec(); err != nil {
		return nil, errors.Join(err, s.Unmount())
	}
	return s, nil
}

func mountOptions(o Options) *fs.Options {
	never := time.Duration(0)
	return &fs.Options{
		EntryTimeout: &never, AttrTimeout: &never, NullPermissions: true,
		Logger: log.New(logWriter{o.Logf}, "", 0),
		MountOptions: fuse.MountOptions{
			FsName: o.Source, Name: "ckptfs",
			// default_permissions: without it nothing checks the mode of a file at open.
			Options:           []string{"default_permissions", "noexec"},
			DirectMountStrict: true, // needs no fusermount
			DisableSplice:     true, // buys nothing here, and 1 MiB reads do not fit a pipe
			SyncRead:          true, // reads by sendfile come in order
			MaxWrite:          blockSize,
			// readdirplus would look up, and so ask for the size of, what is only listed.
			DisableReadDirPlus: true,
			Logger:             log.New(logWriter{o.Logf}, "", 0),
		},
	}
}

// logWriter gives the library's log lines to ours.
type logWriter struct {
	logf func(format string, args ...any)
}

func (w logWriter) Write(b []byte) (int, error) {
	w.logf("fuse: %s", string(b[:len(b)-min(1, len(b))]))
	return len(b), nil
}

var _ io.Writer = logWriter{}

// CheckDir refuses what cannot be mounted on with a better sentence than mount(2) has. Mount
// calls it too; who has to prepare much for a mount may ask before.
func CheckDir(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return serverGone(dir)
	case err != nil:
		return err
	case !st.IsDir():
		return failf(syscall.ENOTDIR, "%s is not a directory", dir)
	}
	var self, parent unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &self), unix.Stat(filepath.Dir(dir), &parent)); err != nil {
		return err
	}
	if self.Dev == parent.Dev {
		return nil
	}
	pid, err := ServerPID(dir)
	switch {
	case err == nil:
		return failf(syscall.EBUSY, "%s is mounted already, served by process %d; end it with ckptfs umount", dir, pid)
	case errors.Is(err, syscall.ENOTCONN): // it has died since
		return serverGone(dir)
	}
	return nil
}

func serverGone(dir string) error {
	return failf(syscall.ENOTCONN, "%s is the mount of a server that is gone; clear it with: umount -l %s", dir, dir)
}

// ClearStale removes a mount on dir whose server has died. It reports whether there was one.
func ClearStale(dir string) (bool, error) {
	if _, err := os.Stat(dir); !errors.Is(err, syscall.ENOTCONN) {
		return false, nil
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return false, fmt.Errorf("clearing the dead mount on %s: %w", dir, err)
	}
	return true, nil
}

// closeOnExec makes /dev/fuse close on exec, which the library does not with a direct mount:
// a restored process would inherit it, and after the death of this one every reader would
// hang instead of getting ENOTCONN.
func closeOnExec() error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || link != "/dev/fuse" {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		unix.CloseOnExec(fd)
	}
	return nil
}

// errEnds is why checkpoints are given up that are being stored when the mount ends.
var errEnds = failf(syscall.ECONNABORTED, "the mount ends")

// Wait blocks until the filesystem is no longer mounted, then ends what still goes on:
// checkpoints that are being stored are given up and frozen trees run on.
func (s *Server) Wait() {
	s.fuse.Wait()
	s.f.stop(errEnds)
	s.f.streams.Wait()
	s.f.trackers.sweep(true)
	s.f.thawAll()
	s.f.templates.end()
}

// Unmount unmounts. If somebody uses the mount it vanishes from the tree nevertheless, and
// its users get an error as soon as this process exits.
func (s *Server) Unmount() error {
	s.f.stop(errEnds)
	err := s.fuse.Unmount()
	if errors.Is(err, syscall.EBUSY) {
		err = unix.Unmount(s.dir, unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", s.dir, err)
	}
	return nil
}

// pidAttr is an extended attribute of the root: the process id of the server.
const pidAttr = "user.ckptfs.pid"

// ServerPID returns the process that serves the mount on dir. It must not be this one.
func ServerPID(dir string) (int, error) {
	var buf [20]byte
	n, err := unix.Getxattr(dir, pidAttr, buf[:])
	if err != nil {
		return 0, fmt.Errorf("%s is no mount of ckptfs: %w", dir, err)
	}
	return strconv.Atoi(string(buf[:n]))
}
