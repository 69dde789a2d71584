package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/restore"
	"github.com/ckptfs/ckptfs/restore/lazy"
	"github.com/spf13/pflag"
)

// restoreFlags are the flags of `ckptfs restore`.
type restoreFlags struct {
	pidfile, out          string
	wait, strict, stopped bool
	lazy                  bool
	lazyRate              bytesFlag
	policy                policy.Set
	verbose               bool
	timeout               time.Duration
	flags                 *pflag.FlagSet
}

func restoreCommand() *command {
	f := &restoreFlags{}
	fs := newFlags("restore")
	f.flags = fs
	fs.StringVar(&f.pidfile, "pidfile", "", "write the pid of the tree's root to `FILE`")
	fs.StringVar(&f.out, "out", "", "`FILE` that takes what the tree writes to terminals and pipes that are gone (default FILE.out)")
	fs.BoolVar(&f.wait, "wait", false, "wait until the root exits and exit with its code")
	policyFlag(fs, &f.policy)
	fs.BoolVar(&f.strict, "strict", false, "the same as --policy files=strict: refuse if any open file has changed since the checkpoint")
	fs.BoolVar(&f.stopped, "stopped", false, "leave the tree stopped (kill -CONT goes on)")
	fs.BoolVar(&f.lazy, "lazy", false, "let the tree run at once; its memory comes when it is touched, and in the background")
	fs.Var(&f.lazyRate, "lazy-rate", "with --lazy, bring at most `SIZE` a second in the background (0: no bound)")
	fs.DurationVar(&f.timeout, "timeout", time.Minute, "give up if the tree does not run within `TIME`")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "say how it goes")
	return &command{
		name: "restore", args: "FILE|-", short: "bring the processes of an image back", flags: fs, nargs: [2]int{1, 1},
		long: `The whole image is checked before anything is done. Either every process runs again under
its old pid, or none was made. Images compressed with zstd or gzip are taken as they are.
Prints the pid of the root.

The restored root is a child of init, as a daemon is. --wait therefore follows it through a
pidfd; the kernel tells its exit code there since Linux 6.15 (128+N if signal N killed it).
On older kernels the code is unknown and --wait exits with 0.

With --lazy the tree runs after the same few milliseconds whatever its size. A page server in the
background brings what is touched first and then the rest, each part compared with its hash, and
ends. It keeps FILE open; do not write to it meanwhile. What cannot be read is told in its log,
and a process that touches it gets SIGBUS. If the page server is killed, so are the processes that
it serves. A checkpoint of them waits until all has come.

An image of a mount that has a template (echo on > MOUNT/images/NAME/template) is restored by that
mount, as cp to MOUNT/restore does, unless --out, --policy, --strict, --stopped, --timeout or --lazy is given.

Examples:
  ckptfs restore job.ckpt
  ckptfs restore --lazy big.ckpt
  ckptfs restore --lazy --lazy-rate 50MiB big.ckpt    and leave some of the disk to others
  ckptfs restore job.ckpt --pidfile job.pid --out job.log
  ckptfs restore job.zst --wait && echo job is through
  ckptfs restore MOUNT/images/NAME/image
  ssh host cat job.ckpt | ckptfs restore -`,
		run: func(ctx context.Context, c *console, args []string) error { return f.run(ctx, c, args[0]) },
	}
}

func (f *restoreFlags) run(ctx context.Context, c *console, name string) error {
	letGarbageLie()
	if m, ok := f.withTemplate(name); ok {
		res, err := m.restore(c, f.verbose)
		if err != nil {
			return fmt.Errorf("restore of %s: %w", label(name), err)
		}
		return f.report(ctx, c, res)
	}
	if name == "-" && f.out == "" {
		f.out = "restored.out"
	}
	if f.strict {
		f.policy["files"] = "strict"
	}
	steps, end, err := c.steps()
	if err != nil {
		return err
	}
	defer end()
	sweepLocks(c.notef)
	open := image.Open
	if f.lazy {
		open = image.OpenChecked
	}
	im, err := openImageWith(c, name, open)
	if err != nil {
		return err
	}
	defer im.Close() // only read: nothing can be lost
	o := restore.Options{
		OutPath: f.outPath(name), Policy: f.policy, Timeout: f.timeout, CallerUID: callerUID(), Stopped: f.stopped,
		Log: c.verbose(f.verbose), Steps: steps,
	}
	if f.lazy {
		o.Lazy = &lazy.Source{Name: fullPath(label(name)), Image: im.plain, Size: im.size, Rate: int64(f.lazyRate), Command: pagesArgs(), Log: func(s string) { c.notef("%s", s) }}
	} else if err := im.verify(ctx, c); err != nil {
		return fmt.Errorf("%s: %w", label(name), err)
	}
	res, err := restore.Run(ctx, im.Reader, o)
	if err != nil {
		return fmt.Errorf("restore of %s: %w", label(name), err)
	}
	if res.Lazy > 0 {
		c.notef("%.1f MiB of memory come in the background, from process %d; if anything goes wrong, %s says so", float64(res.Lazy)/(1<<20), res.PageServer, lazy.LogPath(res.PageServer))
	}
	return f.report(ctx, c, res)
}

// report says what runs now, and waits for it if that was asked.
func (f *restoreFlags) report(ctx context.Context, c *console, res *restore.Result) error {
	var w *waiter
	if f.wait {
		var err error
		if w, err = newWaiter(res.Root); err != nil { // at once: a short program may be gone a moment later
			return err
		}
		defer w.close()
	}
	for _, s := range res.Warnings {
		c.notef("%s", s)
	}
	for _, l := range res.Lost {
		c.notef("%s", l)
	}
	if f.pidfile != "" {
		if err := writePIDFile(f.pidfile, res.Root); err != nil {
			return fmt.Errorf("the tree runs, its root is pid %d, but: %w", res.Root, err)
		}
	}
	if err := c.printf("%d\n", res.Root); err != nil {
		return err
	}
	if w == nil {
		return nil
	}
	code, err := w.wait(ctx)
	if err != nil {
		return err
	}
	if code != 0 {
		return statusError(code)
	}
	return nil
}

// outPath is the absolute path of the output file: restored processes have their own
// working directories.
func (f *restoreFlags) outPath(name string) string {
	if f.out != "" {
		return fullPath(f.out)
	}
	return fullPath(name + ".out")
}

// fullPath is the absolute path of a file.
func fullPath(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		return abs
	}
	return p
}

// callerUID is whom the restored processes must belong to; root may restore anybody's.
func callerUID() int {
	if uid := os.Getuid(); uid != 0 {
		return uid
	}
	return -1
}

// writePIDFile writes pid to path so that a reader never sees half of it.
func writePIDFile(path string, pid int) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".pid-*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(strconv.Itoa(pid) + "\n")
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // the first error counts
	}
	return err
}
