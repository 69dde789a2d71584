package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ckptfs/ckptfs/store"
)

func demoCommand() *command {
	fs := newFlags("demo")
	return &command{
		name: "demo", short: "show it all on processes of its own, then clean up", flags: fs, nargs: [2]int{0, 0},
		long: `Mounts ckptfs in a temporary folder, starts a bash script that counts into a file and has a
child, checkpoints it with cat, kills it, restores it with cp and shows that it counts on.
Then it takes nine more checkpoints and shows what they cost in the store. Needs root, bash
and /dev/fuse; takes about ten seconds and leaves nothing behind.

Example:
  ckptfs demo`,
		run: func(ctx context.Context, c *console, _ []string) (err error) {
			if os.Getuid() != 0 {
				return fmt.Errorf("the demo freezes, kills and restores processes and mounts a filesystem: run it as root")
			}
			d := &demo{c: c}
			defer func() { err = errors.Join(err, d.cleanUp()) }()
			return d.run(ctx)
		},
	}
}

// demo is one run of the demonstration.
type demo struct {
	c       *console
	dir     string // everything is below it
	mnt     string
	counter *exec.Cmd // nil: not running, or restored and thus no child of ours
	root    int       // pid of the counter; 0: it does not run
}

// The script: a number each tenth of a second, and a child in the background.
const counterScript = `exec 3>>"$1"; sleep 1000 & i=0
while i=$((i+1)); do echo "$i" >&3; sleep 0.1; done`

func (d *demo) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{d.mount, d.start, d.checkpoint, d.kill, d.restore, d.nineMore, d.cost} {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) say(format string, args ...any) { d.c.notef("\n# "+format, args...) }

// shell runs one line of shell as a user would, showing it.
func (d *demo) shell(ctx context.Context, format string, args ...any) (string, error) {
	line := fmt.Sprintf(format, args...)
	d.c.notef("$ %s", line)
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir = d.dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if out.Len() > 0 {
		d.c.notef("%s", strings.TrimRight(out.String(), "\n"))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	return strings.TrimSpace(out.String()), nil
}

func (d *demo) mount(ctx context.Context) error {
	var err error
	if d.dir, err = os.MkdirTemp("", "ckptfs-demo-"); err != nil {
		return err
	}
	mnt := filepath.Join(d.dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		return err
	}
	d.say("mount ckptfs, with a store of its own, in %s", d.dir)
	d.c.notef("$ ckptfs mount --store store mnt")
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "mount", "--store", filepath.Join(d.dir, "store"), mnt)
	cmd.Stdout, cmd.Stderr = d.c.Out, d.c.Err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the mount failed: %w", err)
	}
	d.mnt = mnt
	return nil
}

func (d *demo) start(context.Context) error {
	d.say("start a script that counts into a file, with a child")
	d.counter = exec.Command("bash", "-c", counterScript, "counter", filepath.Join(d.dir, "count"))
	d.counter.Dir = d.dir
	d.counter.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.counter.Start(); err != nil {
		return err
	}
	d.root = d.counter.Process.Pid
	time.Sleep(1200 * time.Millisecond)
	d.c.notef("pid %d has counted to %d", d.root, d.count())
	return nil
}

// count is the last number in the file.
func (d *demo) count() int {
	b, err := os.ReadFile(filepath.Join(d.dir, "count"))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(f[len(f)-1]) // the script writes numbers
	return n
}

func (d *demo) checkpoint(ctx context.Context) error {
	d.say("checkpoint it: read a file")
	if _, err := d.shell(ctx, "cat mnt/ckpt/%d/explain; cat mnt/ckpt/%d/image > job.ckpt && ls -lh job.ckpt", d.root, d.root); err != nil {
		return d.why(err)
	}
	at := d.count()
	time.Sleep(500 * time.Millisecond)
	if d.count() <= at {
		return fmt.Errorf("pid %d does not count any more after its checkpoint", d.root)
	}
	d.c.notef("pid %d goes on: %d, %d", d.root, at, d.count())
	return nil
}

// why adds what the mount knows of a failure: tools only show an errno.
func (d *demo) why(err error) error {
	b, rerr := os.ReadFile(fmt.Sprintf("%s/ckpt/%d/explain", d.mnt, d.root))
	if rerr != nil || len(b) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, bytes.TrimSpace(b))
}

func (d *demo) kill(ctx context.Context) error {
	d.say("kill it")
	if _, err := d.shell(ctx, "echo killed > mnt/ckpt/%d/state", d.root); err != nil {
		return err
	}
	_ = d.counter.Wait() // it was killed: that is what Wait says
	d.counter, d.root = nil, 0
	d.c.notef("it had counted to %d", d.count())
	return nil
}

func (d *demo) restore(ctx context.Context) error {
	d.say("restore it: write a file")
	at := d.count()
	if _, err := d.shell(ctx, "cp job.ckpt mnt/restore/ || { cat mnt/restore/job.ckpt.status; exit 1; }"); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(d.mnt, "restore/job.ckpt.status"))
	if err != nil {
		return err
	}
	var status struct{ Root int }
	if err := json.Unmarshal(b, &status); err != nil {
		return err
	}
	d.root = status.Root
	for range 30 {
		if time.Sleep(100 * time.Millisecond); d.count() > at+1 {
			break
		}
	}
	if d.count() <= at {
		return fmt.Errorf("pid %d runs, but does not count on from %d", d.root, at)
	}
	_, err = d.shell(ctx, "ps -o pid,ppid,args --forest -g %d; tail -n 3 count", d.root)
	return err
}

func (d *demo) nineMore(ctx context.Context) error {
	d.say("nine more checkpoints")
	if _, err := d.shell(ctx, "for i in 2 3 4 5 6 7 8 9 10; do cat mnt/ckpt/%d/image > job.ckpt || exit; done; ls mnt/images | wc -l", d.root); err != nil {
		return d.why(err)
	}
	return nil
}

// cost ends the mount, since only one process can have the store open, and looks into it.
func (d *demo) cost(ctx context.Context) error {
	if err := d.end(ctx); err != nil {
		return err
	}
	d.say("what they cost in the store")
	st, err := store.Open(filepath.Join(d.dir, "store"), store.Options{})
	if err != nil {
		return err
	}
	defer st.Close() // only read
	list, err := st.List()
	if err != nil {
		return err
	}
	for i, im := range list {
		if i == 0 || i == len(list)-1 {
			if err := d.c.printf("checkpoint %2d: %s as a file, %s in the store\n", i+1, size(im.Size), size(im.Unique)); err != nil {
				return err
			}
		}
	}
	return nil
}

// end kills what was restored and unmounts.
func (d *demo) end(ctx context.Context) error {
	if d.root != 0 && d.mnt != "" {
		if _, err := d.shell(ctx, "echo killed > mnt/ckpt/%d/state", d.root); err != nil {
			return err
		}
		d.root = 0
	}
	if d.mnt != "" {
		d.c.notef("$ ckptfs umount mnt")
		if err := umount(ctx, d.mnt, false, false); err != nil {
			return err
		}
		d.mnt = ""
	}
	return nil
}

// cleanUp leaves nothing behind, however far the demo came.
func (d *demo) cleanUp() error {
	ctx := context.Background() // the command's own may be over: that is why we are here
	var errs []error
	if d.counter != nil {
		errs = append(errs, syscall.Kill(-d.counter.Process.Pid, syscall.SIGKILL)) // it leads its group
		_ = d.counter.Wait()                                                       // it was killed: that is what Wait says
		d.root = 0
	}
	errs = append(errs, d.end(ctx))
	if d.mnt != "" {
		errs = append(errs, umount(ctx, d.mnt, true, false))
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}
