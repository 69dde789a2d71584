package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/ckptfs/ckptfs/store"
)

// storeCommand makes a subcommand that works on a store folder which no mount has open.
func storeCommand(name, short, long string, run func(ctx context.Context, c *console, st *store.Store, asJSON bool) error) *command {
	var dir string
	var asJSON bool
	fs := newFlags(name)
	fs.StringVar(&dir, "store", defaultStore(), "the folder `DIR`")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return &command{
		name: name, short: short, long: long, flags: fs, nargs: [2]int{0, 0},
		run: func(ctx context.Context, c *console, _ []string) (err error) {
			if _, err := os.Stat(dir); err != nil { // Open would create it
				return fmt.Errorf("there is no store: %w", err)
			}
			st, err := store.Open(dir, store.Options{Log: func(s string) { c.notef("%s", s) }})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, st.Close()) }()
			return run(ctx, c, st, asJSON)
		},
	}
}

func lsCommand() *command {
	return storeCommand("ls", "list the checkpoints in a store", `While a mount has the store open, look into its images/ instead.

Examples:
  ckptfs ls
  ckptfs ls --store /srv/ckpt --json | jq -r '.[].Name'`, listImages)
}

func listImages(_ context.Context, c *console, st *store.Store, asJSON bool) error {
	list, err := st.List()
	if err != nil {
		return err
	}
	if asJSON {
		if list == nil {
			list = []store.Image{} // "[]" and not "null" for scripts
		}
		return c.json(list)
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	for _, im := range list {
		fmt.Fprintf(w, "%s\t%s\t%s of its own\t%s\n", im.Created.UTC().Format(time.RFC3339), size(im.Size), size(im.Unique), im.Name)
	}
	return w.Flush()
}

func verifyCommand() *command {
	return storeCommand("verify", "read everything in a store and compare it with its hashes", `The exit code is 1 if anything is damaged.

Examples:
  ckptfs verify
  ckptfs verify --store /srv/ckpt`, verifyStore)
}

func verifyStore(ctx context.Context, c *console, st *store.Store, asJSON bool) error {
	faults := []string{}
	err := st.Verify(ctx, true, func(s string) { faults = append(faults, s) })
	if err != nil && !errors.Is(err, store.ErrDamaged) {
		return err
	}
	if asJSON {
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
	return storeCommand("gc", "free the space of removed checkpoints", `Examples:
  ckptfs gc
  ckptfs gc --store /srv/ckpt --json`, collect)
}

func collect(ctx context.Context, c *console, st *store.Store, asJSON bool) error {
	rep, err := st.GC(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return c.json(rep)
	}
	for _, s := range rep.Kept {
		c.notef("kept: %s", s)
	}
	return c.printf("%d packs removed, %d written, %s freed; %s needed, %s dead but left in packs that are mostly needed\n",
		rep.Packs, rep.Written, size(rep.Freed), size(rep.Live), size(rep.Dead))
}

func statsCommand() *command {
	return storeCommand("stats", "tell how much a store holds and saves", `Examples:
  ckptfs stats
  ckptfs stats --json | jq .Ratio`, showStats)
}

func showStats(_ context.Context, c *console, st *store.Store, asJSON bool) error {
	s, err := st.Stats()
	if err != nil {
		return err
	}
	if asJSON {
		return c.json(s)
	}
	return c.printf("%d checkpoints, %s as files, %s in the store (%.1f times less), %d chunks in %d packs\n",
		s.Images, size(s.Logical), size(s.Stored), s.Ratio, s.Chunks, s.Packs)
}
