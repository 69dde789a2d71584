// Command chunks is the study that chose the size of chunks and their codec: how far the
// memory of real programs deduplicates and compresses, how fast, and what restic and borg
// make of the same bytes.
//
//	go run ./test/bench/chunks --help
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	ours "github.com/ckptfs/ckptfs/store"
	"github.com/spf13/pflag"
)

const usage = `Usage: chunks [flags] STEP DIR

Steps:
  collect  start redis, postgres, python3, node and java, two of each, and take five
           checkpoints of one under load and one of the other, 5 s apart, into DIR
  check    compare those that the engine takes too with its images
  sizes    what all images take with each size of chunks, codec and variant
  speeds   how fast that is, in memory
  others   sizes and times of restic, borg and our store for the same images
  all      sizes, speeds and others

The images in DIR hold the memory of the programs as ckpt/image describes it, but are read
from /proc without the engine, since it does not take the sockets of redis and postgres.
A page counts if it is the process's own: not clean file pages, not the shared zero page.
Two instances have the same data at first and then each its own load; their addresses differ.
The order of images is: five of the first instance, one of the second, program by program.

Debian packages: redis-server postgresql postgresql-contrib python3 nodejs
openjdk-17-jdk-headless restic borgbackup. collect needs root and Linux 6.7; DIR takes about
6 GB, others as much again in the folder for temporary files.

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ours.SpareProc()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, pflag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "chunks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, say io.Writer) error {
	f := pflag.NewFlagSet("chunks", pflag.ContinueOnError)
	ckptfs := f.String("ckptfs", "", "collect: also take real images with this binary, for check")
	only := f.StringArray("only", nil, "only these programs (collect), cuttings (sizes), schemes (speeds) or tools (others)")
	runs := f.Int("runs", 3, "speeds, others: how many times to measure; the median counts")
	sample := f.Int("sample", 1, "sizes: compress one frame in so many and assume the others alike")
	f.Usage = func() { fmt.Fprint(say, usage, f.FlagUsages()) }
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 {
		return errors.New("a step and a folder are wanted; see --help")
	}
	if *sample < 1 || *runs < 1 {
		return errors.New("--sample and --runs are at least 1")
	}
	step, dir := f.Arg(0), f.Arg(1)
	switch step {
	case "collect":
		return collect(ctx, dir, *ckptfs, *only, say)
	case "check":
		return check(dir, out)
	}
	ins, err := loadInputs(dir)
	if err != nil {
		return err
	}
	out = &comment{w: out}
	describe(ins, out)
	switch step {
	case "sizes":
		return sizes(ctx, ins, *only, *sample, out)
	case "speeds":
		return speeds(ctx, ins, *only, *runs, out, say)
	case "others":
		return others(ctx, dir, ins, backups(*only), *runs, out, say)
	case "all":
		return errors.Join(sizes(ctx, ins, *only, *sample, out), speeds(ctx, ins, *only, *runs, out, say), others(ctx, dir, ins, backups(*only), *runs, out, say))
	}
	return fmt.Errorf("there is no step %q; see --help", step)
}

// chosen tells whether a list of names, which may be empty for all, has name.
func chosen(only []string, name string) bool { return len(only) == 0 || slices.Contains(only, name) }

// describe says how large the images are.
func describe(ins []*input, w io.Writer) {
	bytes, images := map[string]int64{}, map[string]int{}
	var all int64
	for _, in := range ins {
		bytes[in.program] += int64(len(in.data))
		images[in.program]++
		all += int64(len(in.data))
	}
	fmt.Fprintf(w, "%d images, %.1f MiB:", len(ins), mib(all))
	for _, p := range programs() {
		fmt.Fprintf(w, " %s %d of %.1f", p.name, images[p.name], mib(bytes[p.name]))
	}
	fmt.Fprintln(w)
}
