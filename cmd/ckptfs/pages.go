package main

import (
	"context"

	"github.com/ckptfs/ckptfs/restore/lazy"
)

// pagesArgs is the command line of a page server, whose descriptor 3 leads to the restore.
func pagesArgs() []string { return []string{"/proc/self/exe", "pages"} }

// pagesCommand is what serves the memory of processes that were restored lazily, and what its
// guard executes if that is killed. It is not for users.
func pagesCommand() *command {
	var rescue bool
	fs := newFlags("pages")
	fs.BoolVar(&rescue, "rescue", false, "end the processes of a page server that was killed; the argument is its log")
	return &command{
		name: "pages", args: "[LOG]", short: "serve the memory of lazy processes (started by ckptfs itself)", flags: fs, nargs: [2]int{0, 1},
		long: `Example:
  ckptfs restore --lazy job.ckpt`,
		run: func(_ context.Context, _ *console, args []string) error {
			switch {
			case rescue && len(args) == 1:
				return lazy.Rescue(args[0])
			case rescue || len(args) > 0:
				return usagef("ckptfs pages is started by ckptfs restore --lazy")
			}
			return lazy.Serve(3, []string{"pages", "--rescue"})
		},
	}
}
