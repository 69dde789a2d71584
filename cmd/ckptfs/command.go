package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// version is what `ckptfs --version` says; the build sets it with -ldflags -X.
var version = "0.1.0-dev"

// command is one subcommand.
type command struct {
	name  string // "dump", or two words: "key new"
	args  string // what follows the flags in the usage line: "PID"
	short string // one line for `ckptfs --help`
	long  string // paragraphs and examples for `ckptfs NAME --help`
	flags *pflag.FlagSet
	nargs [2]int // least and most number of arguments
	run   func(ctx context.Context, c *console, args []string) error
}

// newFlags returns an empty set of flags that prints nothing by itself.
func newFlags(name string) *pflag.FlagSet {
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.SortFlags = false
	return f
}

// maker is a subcommand that has yet to be made, flags, help text and all: a command line needs one of them.
type maker struct {
	name string
	make func() *command
}

// commands lists every subcommand, in the order of the help text.
func commands() []maker {
	return []maker{
		{"mount", mountCommand}, {"umount", umountCommand},
		{"dump", dumpCommand}, {"restore", restoreCommand},
		{"explain", explainCommand}, {"show", showCommand}, {"check", checkCommand},
		{"ls", lsCommand}, {"verify", verifyCommand}, {"gc", gcCommand}, {"stats", statsCommand}, {"key new", keyNewCommand},
		{"demo", demoCommand},
	}
}

// run executes the command line args and returns the exit code.
func run(ctx context.Context, c *console, args []string) int {
	err := dispatch(ctx, c, args)
	if err == nil {
		return exitOK
	}
	if s := sentence(err); s != "" {
		c.notef("ckptfs: %s", s)
	}
	return exitCode(err)
}

func dispatch(ctx context.Context, c *console, args []string) error {
	all := commands()
	if len(args) == 0 {
		return usagef("no command given; see ckptfs --help")
	}
	switch args[0] {
	case "--help", "-h", "help":
		if len(args) == 2 && args[1] == "policies" {
			return c.printf("%s", policiesHelp())
		}
		if len(args) > 1 {
			return dispatch(ctx, c, append(args[1:len(args):len(args)], "--help"))
		}
		return c.printf("%s", mainHelp(all))
	case "--version", "version":
		return c.printf("ckptfs %s\n", version)
	}
	var longer []string
	for _, cmd := range append(all, maker{"pages", pagesCommand}) {
		words := strings.Fields(cmd.name)
		if n := len(words); len(args) >= n && slices.Equal(args[:n], words) {
			return cmd.make().execute(ctx, c, args[n:])
		}
		if words[0] == args[0] {
			longer = append(longer, "ckptfs "+cmd.name)
		}
	}
	if longer != nil {
		return usagef("%s alone is no command; there is: %s", args[0], strings.Join(longer, ", "))
	}
	return usagef("there is no command %q; see ckptfs --help", args[0])
}

// execute parses args and runs the command.
func (cmd *command) execute(ctx context.Context, c *console, args []string) error {
	switch err := cmd.flags.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return c.printf("%s", cmd.help())
	case err != nil:
		return usagef("%s: %v; see ckptfs %s --help", cmd.name, err, cmd.name)
	}
	rest := cmd.flags.Args()
	if len(rest) < cmd.nargs[0] || len(rest) > cmd.nargs[1] {
		return usagef("usage: ckptfs %s; see ckptfs %s --help", cmd.usage(), cmd.name)
	}
	return cmd.run(ctx, c, rest)
}

func (cmd *command) usage() string {
	return strings.TrimSpace(cmd.name + " [flags] " + cmd.args)
}

func (cmd *command) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nUsage: ckptfs %s\n", cmd.short, cmd.usage())
	if cmd.flags.HasFlags() {
		fmt.Fprintf(&b, "\nFlags:\n%s", cmd.flags.FlagUsages())
	}
	fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(cmd.long))
	return b.String()
}

func mainHelp(all []maker) string {
	var b strings.Builder
	b.WriteString("ckptfs takes and restores checkpoints of running Linux processes.\n\nUsage: ckptfs COMMAND [flags] [arguments]\n\nCommands:\n")
	for _, cmd := range all {
		fmt.Fprintf(&b, "  %-8s %s\n", cmd.name, cmd.make().short)
	}
	b.WriteString("\nckptfs COMMAND --help tells more and has examples; ckptfs help policies lists the policies.\n\nExit codes:\n")
	for _, e := range exitTexts {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.text)
	}
	fmt.Fprintf(&b, "\n%s=1 (or a file) logs each step of a checkpoint and a restore with its time.\n", debugEnv)
	return b.String()
}

// usageError is a command line that says nothing we could do.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}
