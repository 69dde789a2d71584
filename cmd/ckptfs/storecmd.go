package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/ckptfs/ckptfs/store"
	"github.com/spf13/pflag"
)

// storeCommand is a subcommand that works on a store, also on one that a mount has: then it asks
// the mount.
type storeCommand struct {
	at     storeFlags
	asJSON bool
	flags  *pflag.FlagSet
}

func newStoreCommand(name string) *storeCommand {
	s := &storeCommand{flags: newFlags(name)}
	s.at.add(s.flags, "the store is in")
	s.flags.BoolVar(&s.asJSON, "json", false, "print JSON")
	return s
}

// command makes the subcommand. run gets the open store.
func (s *storeCommand) command(short, long string, run func(ctx context.Context, c *console, st storeAPI) error) *command {
	return &command{
		name: s.flags.Name(), short: short, long: long, flags: s.flags, nargs: [2]int{0, 0},
		run: func(ctx context.Context, c *console, _ []string) (err error) {
			if err := s.at.resolve(); err != nil {
				return err
			}
			if err := s.at.exists(); err != nil {
				return err
			}
			st, err := s.at.openOrAsk(ctx, c)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, st.Close()) }()
			return run(ctx, c, st)
		},
	}
}

func lsCommand() *command {
	s := newStoreCommand("ls")
	return s.command("list the checkpoints in a store", `Each line has: when it was taken, its size as a file, what it brought into the store, how many
times less that is, "kept" if it was renamed, and its name. A mount that has the store is asked.

Examples:
  ckptfs ls
  ckptfs ls --store /srv/ckpt --json | jq -r '.[].Name'`, s.list)
}

// listed is an image in `ls --json`.
type listed struct {
	store.Image
	Ratio float64 // Size / Unique; 0 if it brought nothing
}

func (s *storeCommand) list(_ context.Context, c *console, st storeAPI) error {
	list, err := st.List()
	if err != nil {
		return err
	}
	if s.asJSON {
		out := []listed{} // "[]" and not "null" for scripts
		for _, im := range list {
			out = append(out, listed{im, im.Ratio()})
		}
		return c.json(out)
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	for _, im := range list {
		kept := ""
		if im.Kept {
			kept = "kept"
		}
		fmt.Fprintf(w, "%s\t%s\t%s of its own\t%.1fx\t%s\t%s\n", im.Created.UTC().Format(time.RFC3339), size(im.Size), size(im.Unique),
			im.Ratio(), kept, im.Name)
	}
	return w.Flush()
}

func verifyCommand() *command {
	s := newStoreCommand("verify")
	var readData bool
	s.flags.BoolVar(&readData, "read-data", false, "also read everything and compare it with its hashes")
	return s.command("check that a store is whole", `Checks the records, the index and the packs, and that every piece of every checkpoint is where it
should be. With --read-data it also reads them all. Each fault is a line that names the
checkpoints it damages; the exit code is 1 if there is one, in both cases.

Examples:
  ckptfs verify
  ckptfs verify --read-data --store /srv/ckpt`, func(ctx context.Context, c *console, st storeAPI) error {
		return s.verify(ctx, c, st, readData)
	})
}

func (s *storeCommand) verify(ctx context.Context, c *console, st storeAPI, readData bool) error {
	faults := []string{}
	if readData {
		bar := newProgress(c, "verify", 0)
		defer bar.end()
		ctx = store.WithProgress(ctx, bar.set)
	}
	err := st.Verify(ctx, readData, func(s string) { faults = append(faults, s) })
	if err != nil && !errors.Is(err, store.ErrDamaged) {
		return err
	}
	if s.asJSON {
		if jerr := c.json(struct {
			Faults []string `json:"faults"`
		}{faults}); jerr != nil {
			return jerr
		}
	} else {
		for _, s := range faults {
			if err := c.printf("%s\n", s); err != nil {
				return err
			}
		}
	}
	return err
}

func gcCommand() *command {
	s := newStoreCommand("gc")
	keep := &keepFlags{expire: keepDefaults().expire}
	keep.add(s.flags, "")
	return s.command("free the space of removed checkpoints", `With --keep-last, --keep-within or --max-size it removes checkpoints first, and says which and why.
Checkpoints are stored fast and compressed better later: it does that too, for all of them.
`+keepText+`

Examples:
  ckptfs gc
  ckptfs gc --store /srv/ckpt --json
  ckptfs gc --keep-last 3 --keep-within 7d --max-size 50GB`, func(ctx context.Context, c *console, st storeAPI) error {
		return s.collect(ctx, c, st, keep)
	})
}

// collected is `gc --json`.
type collected struct {
	store.GCReport
	Removed []store.Pruned // checkpoints that the --keep flags did not keep
	Over    int64          // bytes beyond --max-size that had to stay
}

func (s *storeCommand) collect(ctx context.Context, c *console, st storeAPI, keep *keepFlags) error {
	if err := keep.check(); err != nil {
		return err
	}
	out := collected{Removed: []store.Pruned{}}
	var first store.GCReport
	if keep.size.set { // what would fit if it were compressed is not to be removed
		if err := settleAll(ctx, st, &first); ctx.Err() != nil {
			return err
		} else if err != nil {
			c.notef("%v; there may be room for it later", err)
		}
	}
	if keep.any() {
		p, err := keep.policy(&s.at, st)
		if err != nil {
			return err
		}
		rep, err := st.Prune(ctx, p)
		for i := range rep.Removed {
			c.notef("removed %s: %s", rep.Removed[i].Name, rep.Removed[i].Why)
		}
		if err != nil {
			return err
		}
		out.Removed, out.Over = append(out.Removed, rep.Removed...), rep.Over
	}
	var err error
	if out.GCReport, err = st.GC(ctx); err != nil {
		return err
	}
	if err := settleAll(ctx, st, &out.GCReport); err != nil {
		return err
	}
	left := out.Unsettled
	addSettled(&out.GCReport, &first)
	out.Unsettled = left
	for _, s := range out.GCReport.Kept {
		c.notef("kept: %s", s)
	}
	if out.Over > 0 {
		c.notef("%s more than --max-size had to stay: what was renamed and the newest checkpoint", size(out.Over))
	}
	if s.asJSON {
		return c.json(out)
	}
	err = c.printf("%d checkpoints and %d packs removed, %d packs written, %s freed; %s needed, %s dead but left in packs that are mostly needed\n",
		len(out.Removed), out.Packs, out.Written, size(out.Freed), size(out.Live), size(out.Dead))
	if err == nil && out.Settled > 0 {
		err = c.printf("%d of the packs had been stored fast: %s compressed again to %s\n", out.Settled, size(out.SettledFrom), size(out.SettledTo))
	}
	if err == nil && out.Pending > 0 {
		err = c.printf("%d packs of the bucket are marked: a gc in %s or later removes those that no machine has come to need\n", out.Pending, out.Again)
	}
	return err
}

// settleAll compresses what checkpoints have stored fast, with all processors, and adds what
// that did to a report.
func settleAll(ctx context.Context, st storeAPI, sum *store.GCReport) error {
	for {
		rep, err := st.Settle(ctx, runtime.GOMAXPROCS(0))
		addSettled(sum, &rep)
		if err != nil || rep.Packs == 0 {
			return err
		}
	}
}

// addSettled adds what a Settle did to a report.
func addSettled(sum, rep *store.GCReport) {
	sum.Packs += rep.Packs
	sum.Written += rep.Written
	sum.Freed += rep.Freed
	sum.Kept = append(sum.Kept, rep.Kept...)
	sum.Settled += rep.Settled
	sum.SettledFrom += rep.SettledFrom
	sum.SettledTo += rep.SettledTo
	sum.Unsettled = rep.Unsettled
}

// holding is `stats --json`.
type holding struct {
	store.Stats
	Mount *served `json:",omitempty"` // the mount that has the store
}

func statsCommand() *command {
	s := newStoreCommand("stats")
	var mount bool
	s.flags.BoolVar(&mount, "mount", false, "also tell what the mount takes that has the store: goroutines, descriptors, memory")
	return s.command("tell how much a store holds and saves", `Examples:
  ckptfs stats
  ckptfs stats --json | jq .Ratio
  ckptfs stats --mount`, func(_ context.Context, c *console, st storeAPI) error { return s.stats(c, st, mount) })
}

func (s *storeCommand) stats(c *console, st storeAPI, mount bool) error {
	t, err := st.Stats()
	if err != nil {
		return err
	}
	out := holding{Stats: t}
	if mount {
		held, ok := st.(*heldStore)
		if !ok {
			return usagef("stats: no mount has the store %s; leave --mount away, or mount it", s.at.place)
		}
		by, err := held.served()
		if err != nil {
			return err
		}
		out.Mount = &by
	}
	if s.asJSON {
		return c.json(out)
	}
	err = c.printf("%d checkpoints (%d kept), %s as files, %s of their own, %s in the store (%.1f times less), %d chunks in %d packs\n",
		t.Images, t.Kept, size(t.Logical), size(t.Unique), size(t.Stored), t.Ratio, t.Chunks, t.Packs)
	if err == nil && out.Mount != nil {
		err = c.printf("the mount is process %d: %d goroutines, %d descriptors, %s of memory, %s of it in use\n",
			out.Mount.PID, out.Mount.Goroutines, out.Mount.Descriptors, size(int64(out.Mount.Memory)), size(int64(out.Mount.Heap)))
	}
	return err
}
