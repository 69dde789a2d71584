package main

import (
	"bytes"
	"fmt"
	"io"
)

// comment puts "//<tab>" before every line, as a Go doc comment wants a table.
type comment struct {
	w      io.Writer
	inLine bool
}

func (c *comment) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		prefix := "//\t"
		if c.inLine {
			prefix = ""
		}
		if _, err := fmt.Fprintf(c.w, "%s%s", prefix, line); err != nil {
			return 0, err
		}
		c.inLine = line[len(line)-1] != '\n'
	}
	return len(b), nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// printPrograms ends a line with a column for each program.
func printPrograms(w io.Writer, bytes map[string]int64) {
	for _, p := range programs() {
		fmt.Fprintf(w, " %8.1f", mib(bytes[p.name]))
	}
	fmt.Fprintln(w)
}

func printProgramsHead(w io.Writer) {
	for _, p := range programs() {
		fmt.Fprintf(w, " %8s", p.name)
	}
	fmt.Fprintln(w)
}

func printSizesHead(w io.Writer) {
	fmt.Fprintln(w, "dedupe: bytes of images to bytes of new chunks; compr: these to what is stored of them;")
	fmt.Fprintln(w, "ratio: bytes of images to all that is stored. Then MiB stored: meta (footers, index, chunk")
	fmt.Fprintln(w, "lists, trailers), all, and all of it by program.")
	fmt.Fprintf(w, "%-28s %6s %6s %6s %7s %8s", "chunks, codec", "dedupe", "compr", "ratio", "meta", "all")
	printProgramsHead(w)
}

func (r *sized) print(w io.Writer, logical int64) {
	t, data := &r.tally, r.tally[kindData]
	fmt.Fprintf(w, "%-28s %6.2f %6.2f %6.2f %7.1f %8.1f", r.name(), float64(logical)/float64(data.raw),
		float64(data.raw)/float64(data.stored), float64(logical)/float64(t.total()), mib(t.meta()), mib(t.total()))
	printPrograms(w, r.programs)
}

func printSpeedsHead(w io.Writer, runs int) {
	fmt.Fprintf(w, "GB of images a second, medians of %d runs: with two goroutines, and by processor time of one core.\n", runs)
	fmt.Fprintf(w, "%-28s  %13s  %13s\n", "chunks, codec", "ingest", "read")
}

func printSpeed(w io.Writer, s *scheme, in, out speed) {
	fmt.Fprintf(w, "%-28s  %6.2f %6.2f  %6.2f %6.2f\n", s.name(), in.wall/1e9, in.cpu/1e9, out.wall/1e9, out.cpu/1e9)
}

func printOthersHead(w io.Writer) {
	fmt.Fprintf(w, "%-12s %8s %6s %8s %8s %6s", "tool", "MiB", "ratio", "s", "cpu s", "GB/s")
	printProgramsHead(w)
}

func (r *backedUp) print(w io.Writer, logical int64) {
	fmt.Fprintf(w, "%-12s %8.1f %6.2f %8.1f %8.1f %6.3f", r.name, mib(r.total), float64(logical)/float64(r.total),
		r.wall.Seconds(), r.cpu.Seconds(), float64(logical)/1e9/r.wall.Seconds())
	printPrograms(w, r.programs)
}
