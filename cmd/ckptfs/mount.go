package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/ckpt/steplog"
	"github.com/ckptfs/ckptfs/fusefs"
	"github.com/ckptfs/ckptfs/store"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// mountFlags are the flags of `ckptfs mount`.
type mountFlags struct {
	at         storeFlags
	keep       keepFlags
	log        string
	foreground bool
	timeout    time.Duration
	lazyRate   bytesFlag
	policy     policy.Set
	track      string
	flags      *pflag.FlagSet
	steps      *steplog.Log // may be nil
}

func newMountFlags() *mountFlags {
	fs := newFlags("mount")
	f := &mountFlags{keep: keepDefaults(), flags: fs}
	f.at.add(fs, "keep checkpoints in")
	f.keep.add(fs, "\n(default 50% in a folder, no bound in a bucket)")
	fs.BoolVarP(&f.foreground, "foreground", "f", false, "stay in the foreground and log to standard error")
	fs.StringVar(&f.log, "log", "", "log to `FILE` (default mount.log in the store's folder, or in its cache)")
	policyFlag(fs, &f.policy)
	fs.StringVar(&f.track, "track", string(fusefs.TrackAuto), "follow what processes write, so that their next checkpoint reads only that: `MODE` on,\noff, or auto (those that are checkpointed again within ten minutes); see DIR/README")
	fs.DurationVar(&f.timeout, "restore-timeout", 2*time.Minute, "a restore that takes longer than `TIME` fails; nobody can interrupt it")
	fs.Var(&f.lazyRate, "lazy-rate", "bring at most `SIZE` a second in the background to trees of restore/lazy/ (0: no bound)")
	return f
}

func mountCommand() *command {
	f := newMountFlags()
	return &command{
		name: "mount", args: "DIR", short: "mount the filesystem on DIR", flags: f.flags, nargs: [2]int{1, 1},
		long: `Goes to the background as soon as the mount can be used. A mount on DIR whose server has
died is cleared first. DIR/README explains the mount. Only root may use it. SIGTERM unmounts.

Old checkpoints are removed in the background, and the log says which and why. With the
defaults no job that takes checkpoints for ever fills the disk.
` + keepText + `

Examples:
  ckptfs mount /mnt/ckpt
  cat /mnt/ckpt/ckpt/1234/image > job.ckpt
  cp job.ckpt /mnt/ckpt/restore/
  ckptfs mount --keep-last 3 --keep-within 0 --max-size 20GiB /mnt/ckpt
  ckptfs mount --store s3://bucket/prefix --key-file /root/ckpt.key /mnt/ckpt
  ckptfs mount -f --store /srv/ckpt /mnt/ckpt    for a service manager`,
		run: func(ctx context.Context, c *console, args []string) error { return f.run(ctx, c, args[0]) },
	}
}

func (f *mountFlags) run(ctx context.Context, c *console, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if !fusefs.TrackMode(f.track).Valid() {
		return usagef("--track takes auto, on or off, not %q", f.track)
	}
	if err := errors.Join(f.keep.check(), f.at.resolve()); err != nil {
		return err
	}
	if !f.keep.size.set && !store.IsBucket(f.at.place) {
		f.keep.size = limitFlag{set: true, percent: 50}
	}
	if f.log == "" {
		f.log = filepath.Join(f.at.folder(), "mount.log")
	} else if f.log, err = filepath.Abs(f.log); err != nil {
		return err
	}
	steps, end, err := c.steps()
	if err != nil {
		return err
	}
	defer end()
	f.steps = steps
	ready, err := readyPipe()
	switch {
	case err != nil:
		return err
	case ready != nil:
		return f.background(ctx, c, dir, ready)
	case f.foreground:
		return f.serve(ctx, dir, log.New(c.Err, "", log.LstdFlags|log.LUTC), func() error {
			c.notef("mounted on %s, store %s", dir, f.at.place)
			return nil
		})
	}
	return f.detach(c, dir)
}

// background is the server's half of detach: it reports over the pipe, then logs.
func (f *mountFlags) background(ctx context.Context, c *console, dir string, ready *os.File) error {
	up := false
	err := f.serve(ctx, dir, nil, func() error {
		up = true
		_, err := ready.WriteString(readyWord)
		return errors.Join(err, ready.Close())
	})
	if err != nil && !up {
		_, _ = fmt.Fprintf(ready, "%d %s", exitCode(err), sentence(err)) // nobody left to tell otherwise
		return statusError(exitCode(err))
	}
	return err
}

// serve mounts on dir and serves until ctx ends or the mount is gone. A nil logger means the
// log file, which then is standard error too: that is where a crash would be told.
func (f *mountFlags) serve(ctx context.Context, dir string, l *log.Logger, up func() error) (err error) {
	stale, err := clearDir(dir)
	if err != nil {
		return err
	}
	st, err := f.at.open(nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	spool := filepath.Join(f.at.folder(), "uploads")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return err
	}
	if l == nil {
		if l, err = openLog(f.log); err != nil {
			return err
		}
	}
	sweepLocks(l.Printf)
	if stale {
		l.Printf("cleared the mount of a server that died on %s", dir)
	}
	keep, err := f.keep.policy(&f.at, st)
	if err != nil {
		return err
	}
	srv, err := fusefs.Mount(fusefs.Options{Dir: dir, Source: f.at.place, Engine: engine{f.steps, int64(f.lazyRate)}, Store: st, Keep: keep, Spool: spool, Private: f.at.keyFile != "",
		Policy: f.policy, Track: fusefs.TrackMode(f.track), RestoreTimeout: f.timeout, Logf: l.Printf})
	if err != nil {
		return err
	}
	protect(l)
	boundMemory()
	l.Printf("ckptfs %s: mounted on %s, store %s, pid %d", version, dir, f.at.place, os.Getpid())
	l.Printf("keeping %s", policyText(&keep))
	ctl := &control{st: st, srv: srv, dir: f.at.folder(), name: f.at.place, logf: l.Printf}
	if ctl.key, err = f.at.key(); err == nil {
		err = ctl.listen()
	}
	if err != nil {
		return errors.Join(err, srv.Unmount())
	}
	defer func() { err = errors.Join(err, ctl.close()) }()
	if err := up(); err != nil {
		return errors.Join(err, srv.Unmount())
	}
	return f.untilEnd(ctx, srv, l)
}

// clearDir makes sure that dir can be mounted on, and reports whether it has cleared the mount of a server that died.
func clearDir(dir string) (stale bool, err error) {
	if stale, err = fusefs.ClearStale(dir); err != nil {
		return stale, err
	}
	err = fusefs.CheckDir(dir)
	if errors.Is(err, unix.ENOTCONN) { // it has only died now
		if stale, err = fusefs.ClearStale(dir); err == nil {
			err = fusefs.CheckDir(dir)
		}
	}
	return stale, err
}

// untilEnd waits for the end of the mount, or ends it when a signal asks for it.
func (f *mountFlags) untilEnd(ctx context.Context, srv *fusefs.Server, l *log.Logger) error {
	gone := make(chan struct{})
	go func() {
		srv.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-ctx.Done():
		l.Printf("unmounting")
		if err := srv.Unmount(); err != nil {
			return err
		}
		select {
		case <-gone:
		case <-time.After(5 * time.Second): // somebody still uses it; he gets an error when we exit
			l.Printf("still in use; its users get an error now")
		}
	}
	finishLazy(l)
	l.Printf("ended")
	return nil
}

// openLog opens the log file and makes it standard output and error.
func openLog(path string) (*log.Logger, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return nil, fmt.Errorf("log to %s: %w", path, err)
		}
	}
	return log.New(f, "", log.LstdFlags|log.LUTC), nil
}

// protect makes it unlikely that the kernel kills the server of all readers when memory runs
// out. Restored processes get the value of their image.
func protect(l *log.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0); err != nil {
		l.Printf("oom_score_adj stays as it is: %v", err)
	}
}
