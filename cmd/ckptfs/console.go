package main

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/term"
)

// console is where a subcommand reads and writes. Only main knows the process's own files.
type console struct {
	In, Out, Err *os.File
}

// printf writes to standard output; a broken pipe shows up at the end of the command at the
// latest, since every command's result is its last line.
func (c *console) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(c.Out, format, args...)
	return err
}

// notef writes one line to standard error, for people. What it says is never the result, so
// that it cannot be written is no error.
func (c *console) notef(format string, args ...any) {
	_, _ = fmt.Fprintf(c.Err, format+"\n", args...)
}

// verbose returns what takes the engine's lines about its stages: notef if they are wanted.
func (c *console) verbose(wanted bool) func(string) {
	if !wanted {
		return func(string) {}
	}
	return func(s string) { c.notef("%s", s) }
}

// json writes v to standard output, indented.
func (c *console) json(v any) error {
	e := json.NewEncoder(c.Out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// isTerminal reports whether f is a terminal.
func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
