package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	ours "github.com/ckptfs/ckptfs/store"
	"github.com/zeebo/blake3"
)

// backup is a tool that keeps files in a folder of its own.
type backup struct {
	name  string
	begin func(ctx context.Context, dir string) error
	// add stores one more image and says how much time of the processor it took.
	add func(ctx context.Context, dir string, in *input, path string) (time.Duration, error)
	// end, if there is one, comes after the last image.
	end func() error
	// settle, if there is one, makes what was stored smaller afterwards.
	settle func(ctx context.Context, dir string) (time.Duration, error)
}

// backups returns the tools, or those that only names.
func backups(only []string) []backup {
	all := []backup{
		{"restic", func(ctx context.Context, dir string) error {
			_, err := command(ctx, "restic", "-q", "-r", dir, "init", "--repository-version", "2")
			return err
		}, func(ctx context.Context, dir string, in *input, path string) (time.Duration, error) {
			return command(ctx, "restic", "-q", "-r", dir, "--no-cache", "backup", path)
		}, nil, nil},
		borg("lz4"), borg("zstd"),
		ckptfs(),
	}
	return slices.DeleteFunc(all, func(b backup) bool { return !chosen(only, b.name) })
}

func borg(compression string) backup {
	return backup{"borg " + compression, func(ctx context.Context, dir string) error {
		_, err := command(ctx, "borg", "init", "-e", "none", dir)
		return err
	}, func(ctx context.Context, dir string, in *input, path string) (time.Duration, error) {
		return command(ctx, "borg", "create", "--compression", compression, dir+"::"+in.name, path)
	}, nil, nil}
}

// ckptfs is our own store. Like a mount it has the store open all the time.
func ckptfs() backup {
	var s *ours.Store
	return backup{"ckptfs", func(ctx context.Context, dir string) (err error) {
		s, err = ours.Open(dir, ours.Options{})
		return err
	}, func(ctx context.Context, dir string, in *input, path string) (time.Duration, error) {
		from := cpuTime()
		err := addOurs(ctx, s, in)
		return cpuTime() - from, err
	}, func() error { return s.Close() }, settleOurs}
}

// command runs a program with nothing of the user's own configuration or caches.
func command(ctx context.Context, argv ...string) (time.Duration, error) {
	home, err := os.MkdirTemp("", "ckptfs-chunks-home-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(home) // in the folder for such things, if it fails
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+home, "RESTIC_PASSWORD=x", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", argv[0], err, out)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// addOurs stores an image in our own store as a checkpoint does: block after block is hashed and
// stored, on all cores. It is durable when addOurs returns.
func addOurs(ctx context.Context, s *ours.Store, in *input) error {
	ing, err := s.Begin(ctx, in.name)
	if err != nil {
		return err
	}
	defer ing.Abort() // after Commit it does nothing
	runs := in.batches(64 << 10)
	blocks := make([]*ours.Block, len(runs))
	stored := make([]chan error, len(runs))
	for i := range stored {
		stored[i] = make(chan error, 1)
	}
	var next atomic.Int64
	var all sync.WaitGroup
	defer all.Wait()
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for i := int(next.Add(1) - 1); i < len(runs); i = int(next.Add(1) - 1) {
				blocks[i] = ing.Wrap(runs[i].data)
				for at := 0; at < len(runs[i].data); {
					n := runs[i].lens[0]
					blocks[i].Add(blake3.Sum256(runs[i].data[at:at+n]), n)
					at, runs[i].lens = at+n, runs[i].lens[1:]
				}
				stored[i] <- ing.Store(blocks[i])
			}
		})
	}
	for i := range runs {
		if err := <-stored[i]; err != nil {
			return err
		}
		if err := ing.Append(blocks[i]); err != nil {
			return err
		}
	}
	return ing.Commit()
}

// settleOurs does what a mount does in the background, and ckptfs gc at once.
func settleOurs(ctx context.Context, dir string) (time.Duration, error) {
	from := cpuTime()
	s, err := ours.Open(dir, ours.Options{})
	if err != nil {
		return 0, err
	}
	defer s.Close() // again, after an error
	for {
		rep, err := s.Settle(ctx, workers)
		if err != nil {
			return 0, err
		}
		if rep.Unsettled == 0 {
			break
		}
	}
	return cpuTime() - from, s.Close()
}

// backedUp is what was measured of one tool.
type backedUp struct {
	name      string
	programs  map[string]int64 // by how much each made its folder grow
	total     int64
	wall, cpu time.Duration
	settled   *backedUp // only total, wall and cpu: after settling, and what that took
}

// compare has a tool store all images, and says how it goes on.
func (b *backup) compare(ctx context.Context, dir string, ins []*input, say io.Writer) (res *backedUp, err error) {
	tmp, err := os.MkdirTemp("", "ckptfs-chunks-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) // in the folder for such things, if it fails
	repo := filepath.Join(tmp, "repo")
	if err := b.begin(ctx, repo); err != nil {
		return nil, err
	}
	res = &backedUp{name: b.name, programs: map[string]int64{}}
	for _, in := range ins {
		path, err := filepath.EvalSymlinks(filepath.Join(dir, in.name+".raw")) // the tools would store a link as such
		if err != nil {
			return nil, err
		}
		from := time.Now()
		cpu, err := b.add(ctx, repo, in, path)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", b.name, in.name, err)
		}
		res.wall += time.Since(from)
		res.cpu += cpu
		n, err := sizeOf(repo)
		if err != nil {
			return nil, err
		}
		res.programs[in.program] += n - res.total
		res.total = n
		fmt.Fprintf(say, "%s: %s: %.1f MiB, %.1f s, %.1f s of processor\n", b.name, in.name, mib(n), res.wall.Seconds(), res.cpu.Seconds())
	}
	if b.end != nil {
		from := time.Now()
		if err := b.end(); err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
		res.wall += time.Since(from)
		if res.total, err = sizeOf(repo); err != nil {
			return nil, err
		}
	}
	if b.settle != nil {
		res.settled, err = b.afterwards(ctx, repo)
	}
	return res, err
}

// afterwards settles and measures again.
func (b *backup) afterwards(ctx context.Context, repo string) (*backedUp, error) {
	from := time.Now()
	cpu, err := b.settle(ctx, repo)
	if err != nil {
		return nil, fmt.Errorf("%s: settling: %w", b.name, err)
	}
	res := &backedUp{name: b.name + " settled", programs: map[string]int64{}, wall: time.Since(from), cpu: cpu}
	res.total, err = sizeOf(repo)
	return res, err
}

// sizeOf sums the lengths of all files below a folder.
func sizeOf(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		n += st.Size()
		return nil
	})
	return n, err
}

// others has every tool store all images, runs times, and prints for each the run that took
// the median of time. The tools take turns, so that what disturbs the machine disturbs all.
func others(ctx context.Context, dir string, ins []*input, tools []backup, runs int, w, say io.Writer) error {
	all := make([][]*backedUp, len(tools))
	for range runs {
		for i := range tools {
			r, err := tools[i].compare(ctx, dir, ins, say)
			if err != nil {
				return err
			}
			all[i] = append(all[i], r)
		}
	}
	var logical int64
	for _, in := range ins {
		logical += int64(len(in.whole))
	}
	printOthersHead(w)
	for _, of := range all {
		slices.SortFunc(of, func(a, b *backedUp) int { return cmp.Compare(a.wall, b.wall) })
		of[len(of)/2].print(w, logical)
		if s := of[len(of)/2].settled; s != nil {
			s.print(w, logical)
		}
	}
	return nil
}
