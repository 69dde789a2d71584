package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"text/tabwriter"
)

// feature is one thing that ckptfs needs of the machine, as it was found.
type feature struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"` // without it nothing works
	Found  string `json:"found"`  // what was found
	Effect string `json:"effect"` // what follows if it is missing
}

// probe finds out about one feature. run returns what it found, and an error if that is not
// enough. child is a process of ours that sleeps.
type probe struct {
	name   string
	needed bool
	effect string
	run    func(child int) (string, error)
}

func checkCommand() *command {
	var asJSON, child bool
	fs := newFlags("check")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	fs.BoolVar(&child, "be-probed", false, "be the process that is probed")
	fs.Lookup("be-probed").Hidden = true
	return &command{
		name: "check", short: "tell what this kernel and this user can do", flags: fs, nargs: [2]int{0, 0},
		long: `Each feature is tried out. The exit code is 5 if something is missing that nothing works
without; what is merely useful says what follows.

Examples:
  ckptfs check
  ckptfs check --json | jq '.[] | select(.ok | not)'`,
		run: func(ctx context.Context, c *console, _ []string) error {
			if child { // until the prober closes the pipe or dies
				_, err := io.Copy(io.Discard, c.In)
				return err
			}
			return check(ctx, c, asJSON)
		},
	}
}

func check(ctx context.Context, c *console, asJSON bool) error {
	found, err := runProbes(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		err = c.json(found)
	} else {
		err = printFeatures(c, found)
	}
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.Needed && !f.OK {
			return statusError(exitPrivilege)
		}
	}
	return nil
}

func printFeatures(c *console, found []feature) error {
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	for _, f := range found {
		state := "ok"
		switch {
		case !f.OK && f.Needed:
			state = "MISSING"
		case !f.OK:
			state = "missing"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", state, f.Name, f.Found)
		if !f.OK {
			fmt.Fprintf(w, "\t\tfollows: %s\n", f.Effect)
		}
	}
	return w.Flush()
}

// runProbes runs every probe on a child of ours.
func runProbes(ctx context.Context) (found []feature, err error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "check", "--be-probed")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a process to probe: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close(), cmd.Wait()) }()
	for _, p := range probes() {
		what, perr := p.run(cmd.Process.Pid)
		f := feature{Name: p.name, OK: perr == nil, Needed: p.needed, Found: what, Effect: p.effect}
		if perr != nil {
			f.Found = perr.Error()
		}
		found = append(found, f)
	}
	return found, nil
}
