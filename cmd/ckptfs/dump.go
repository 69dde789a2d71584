package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ckptfs/ckptfs/ckpt"
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"golang.org/x/sys/unix"
)

// dumpFlags are the flags of `ckptfs dump`.
type dumpFlags struct {
	output     string
	kill, stop bool
	sync       bool
	verbose    bool
	policy     policy.Set
	timeout    time.Duration
}

func dumpCommand() *command {
	f := &dumpFlags{}
	fs := newFlags("dump")
	fs.StringVarP(&f.output, "output", "o", "", "write the image to `FILE`, - for standard output (default COMM-PID-TIME.ckpt here)")
	fs.BoolVar(&f.kill, "kill", false, "kill the tree once the image is safely written")
	fs.BoolVar(&f.stop, "stop", false, "leave the tree stopped once the image is written (kill -CONT goes on)")
	fs.BoolVar(&f.sync, "sync", false, "wait until the image is on the disk also if the tree lives on")
	policyFlag(fs, &f.policy)
	fs.DurationVar(&f.timeout, "timeout", ckpt.DefaultTimeout, "give up if the tree cannot be frozen within `TIME`")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "say how it goes")
	return &command{
		name: "dump", args: "PID", short: "checkpoint a process and all its descendants into a file", flags: fs, nargs: [2]int{1, 1},
		long: `The tree below PID is stopped for some milliseconds, goes on running, and its image is
written meanwhile. FILE appears complete or not at all. Before anything is lost that it stands
for, it is on the disk too: with --kill before the tree is killed, and where it takes the place
of an older FILE; else the system writes it when it likes, unless --sync is given. The name of
the image is printed on standard output, losses by policy on standard error.

Examples:
  ckptfs dump 1234                        image in python3-1234-20260102T030405Z.ckpt
  ckptfs dump 1234 -o job.ckpt --kill     take it away from here
  ckptfs dump 1234 -o - | zstd > job.zst  restore takes .zst and .gz as they are
  ckptfs dump 1234 -o - | ssh host ckptfs restore -`,
		run: func(ctx context.Context, c *console, args []string) error {
			pid, err := parsePID(args[0])
			if err != nil {
				return err
			}
			return f.run(ctx, c, pid)
		},
	}
}

func (f *dumpFlags) run(ctx context.Context, c *console, pid int) error {
	if f.kill && f.stop {
		return usagef("dump: --kill and --stop exclude each other")
	}
	if f.output == "-" && isTerminal(c.Out) {
		return usagef("dump: an image on a terminal helps nobody; redirect standard output or name a file with -o")
	}
	letGarbageLie()
	ckpt.Prepare()
	steps, end, err := c.steps()
	if err != nil {
		return err
	}
	defer end()
	o := ckpt.Options{Version: version, Timeout: f.timeout, Policy: f.policy, Log: c.verbose(f.verbose), Steps: steps}
	switch {
	case f.kill:
		o.After = ckpt.Kill
	case f.stop:
		o.After = ckpt.Stop
	}
	name := f.output
	if name == "" {
		name = imageName(comm(pid), pid, time.Now())
	}
	sweepLocks(c.notef)
	out, err := createOutput(c, name) // before the freeze: a wrong path costs the tree nothing
	if err != nil {
		return err
	}
	defer out.discard()
	if err := f.write(ctx, c, pid, o, out); err != nil {
		return fmt.Errorf("dump of pid %d to %s: %w", pid, out.label, err)
	}
	if f.output == "" {
		return c.printf("%s\n", name)
	}
	return nil
}

// write takes the checkpoint. The tree is killed or stopped only after the image is safe.
func (f *dumpFlags) write(ctx context.Context, c *console, pid int, o ckpt.Options, out *output) (err error) {
	cp, err := ckpt.Take(ctx, pid, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cp.Close()) }()
	for _, l := range cp.Lost() {
		c.notef("%s", l)
	}
	bar := newProgress(c, "writing", cp.Size())
	defer bar.end()
	_, err = cp.Stream(ctx, image.Writer(func(b []byte) error {
		bar.add(len(b))
		_, err := out.Write(b)
		return err
	}))
	if err != nil {
		return err
	}
	if err := out.commit(f.sync || o.After == ckpt.Kill); err != nil {
		return err
	}
	return cp.Finish()
}

// output is where an image goes: a temporary file that gets its name at the end, or a
// stream that is already there.
type output struct {
	io.Writer
	label string
	file  *os.File // nil: a stream
	name  string
}

// createOutput opens the output name, "-" being standard output. A name that exists and is
// no regular file (/dev/null, a fifo) is written to as a stream.
func createOutput(c *console, name string) (*output, error) {
	if name == "-" {
		return &output{Writer: c.Out, label: "standard output"}, nil
	}
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		if st.IsDir() {
			return nil, usagef("dump: %s is a directory; name a file in it", name)
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		return &output{Writer: f, label: name}, nil
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return nil, err
	}
	return &output{Writer: f, label: name, file: f, name: name}, nil
}

// commit makes the file visible under its name, and durable before if that is asked for or another
// file had the name: a power cut would lose both.
func (o *output) commit(durable bool) error {
	if o.file == nil {
		return o.syncStream(durable)
	}
	if _, err := os.Lstat(o.name); !errors.Is(err, os.ErrNotExist) {
		durable = true
	}
	if durable {
		if err := o.file.Sync(); err != nil {
			return err
		}
	}
	if err := o.file.Close(); err != nil {
		return err
	}
	if err := os.Rename(o.file.Name(), o.name); err != nil {
		return err
	}
	o.file = nil
	if !durable {
		return nil
	}
	return syncDir(filepath.Dir(o.name))
}

// syncStream makes durable what was written to a stream, if it is a file or a disk.
func (o *output) syncStream(durable bool) error {
	f, ok := o.Writer.(*os.File)
	if !ok || !durable {
		return nil
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EROFS) { // what pipes and terminals say
		return err
	}
	return nil
}

// discard removes what commit has not made visible.
func (o *output) discard() {
	if o.file == nil {
		return
	}
	_ = o.file.Close() // it goes away; whether its last bytes were written is of no interest
	_ = os.Remove(o.file.Name())
}

// syncDir makes a rename in dir durable. Filesystems that cannot sync a directory say
// EINVAL; they have nothing better to offer.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}
