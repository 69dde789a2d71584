package main

import (
	"context"

	"github.com/ckptfs/ckptfs/ckpt"
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
)

func explainCommand() *command {
	var asJSON bool
	var set policy.Set
	fs := newFlags("explain")
	fs.BoolVar(&asJSON, "json", false, "print the findings as a JSON array")
	policyFlag(fs, &set)
	return &command{
		name: "explain", args: "PID", short: "say what of a process tree a checkpoint could not keep", flags: fs, nargs: [2]int{1, 1},
		long: `Nothing is stopped. Each line names the process, the descriptor or address, the kind of
thing and what can be done. "refused" means that a checkpoint would fail now, "lost" that it
would leave this out by a named policy. No output: everything would be kept. The exit code is
1 if anything refuses.

Examples:
  ckptfs explain 1234
  ckptfs explain 1234 --json | jq -r '.[].what'`,
		run: func(_ context.Context, c *console, args []string) error {
			pid, err := parsePID(args[0])
			if err != nil {
				return err
			}
			found, err := ckpt.Explain(pid, set)
			if err != nil {
				return err
			}
			if err := printFindings(c, found, asJSON); err != nil {
				return err
			}
			if image.Refusals(found) != nil {
				return statusError(exitFailed)
			}
			return nil
		},
	}
}

func printFindings(c *console, found []image.Finding, asJSON bool) error {
	if asJSON {
		if found == nil {
			found = []image.Finding{} // "[]" and not "null" for scripts
		}
		return c.json(found)
	}
	for _, f := range found {
		if err := c.printf("%s\n", f); err != nil {
			return err
		}
	}
	return nil
}
