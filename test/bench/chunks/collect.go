package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

const (
	checkpoints = 5
	between     = 5 * time.Second
)

// collect starts two instances of every program and takes five checkpoints of the first, five
// seconds apart, and one of the second. If ckptfs is not "", it also has that program take a
// real image of what the engine accepts, check-NAME.ckpt, and one of our own of the same stopped
// process, check-NAME.raw.
func collect(ctx context.Context, dir, ckptfs string, only []string, say io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range programs() {
		if !chosen(only, p.name) {
			continue
		}
		if err := p.collect(ctx, dir, ckptfs, say); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (p *program) collect(ctx context.Context, dir, ckptfs string, say io.Writer) (err error) {
	tmp, err := os.MkdirTemp("", "ckptfs-chunks-")
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		time.Sleep(time.Second) // until all are dead and write no more
		err = errors.Join(err, os.RemoveAll(tmp))
	}()
	if err := os.Chmod(tmp, 0o755); err != nil { // the server of postgres runs as another user
		return err
	}
	var pids [2]int
	for i := range pids {
		own := filepath.Join(tmp, strconv.Itoa(i))
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		if pids[i], err = p.start(ctx, own); err != nil {
			return err
		}
	}
	for i := range checkpoints {
		time.Sleep(between)
		if err := stopAndTake(pids[0], filepath.Join(dir, fmt.Sprintf("%s-a%d.raw", p.name, i+1)), say); err != nil {
			return err
		}
	}
	if err := stopAndTake(pids[1], filepath.Join(dir, p.name+"-b1.raw"), say); err != nil {
		return err
	}
	if !p.real || ckptfs == "" {
		return nil
	}
	return p.takeReal(ctx, pids[0], ckptfs, dir, say)
}

// stopAndTake writes an image of a tree of processes.
func stopAndTake(pid int, path string, say io.Writer) (err error) {
	pids, err := stopTree(pid)
	defer func() { err = errors.Join(err, cont(pids)) }()
	if err != nil {
		return err
	}
	return take(pids, path, say)
}

// take writes an image of stopped processes.
func take(pids []int, path string, say io.Writer) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	from := time.Now()
	w := bufio.NewWriterSize(f, 1<<20)
	regions, err := snapshot(pids, w)
	took := time.Since(from)
	if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
		return err
	}
	if err := saveInput(path, regions); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(say, "%s: %d MiB in %d regions, %s\n", filepath.Base(path), st.Size()>>20, len(regions), took.Round(time.Millisecond))
	return nil
}

// takeReal takes a real image of a stopped program, and right before it one of our own.
func (p *program) takeReal(ctx context.Context, pid int, ckptfs, dir string, say io.Writer) error {
	pids, err := stopTree(pid)
	defer func() { cont(pids) }()
	if err != nil {
		return err
	}
	if err := take(pids, filepath.Join(dir, "check-"+p.name+".raw"), say); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, ckptfs, "dump", strconv.Itoa(pid), "-o", filepath.Join(dir, "check-"+p.name+".ckpt")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ckptfs dump: %w: %s", err, out)
	}
	return nil
}
