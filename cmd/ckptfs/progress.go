package main

import (
	"fmt"
	"time"
)

// progress draws how far a long piece of work is, on standard error and only if that is a
// terminal. Work that takes less than a second is never drawn.
type progress struct {
	c           *console
	what        string
	total, done int64
	start, last time.Time
	drawn       bool
	on          bool
}

// newProgress starts a progress line; total is in bytes.
func newProgress(c *console, what string, total int64) *progress {
	now := time.Now()
	return &progress{c: c, what: what, total: total, start: now, last: now.Add(time.Second), on: isTerminal(c.Err)}
}

// add counts n more bytes.
func (p *progress) add(n int) { p.set(p.done+int64(n), p.total) }

// set says that done of total bytes are through.
func (p *progress) set(done, total int64) {
	p.done, p.total = done, total
	now := time.Now()
	if !p.on || now.Before(p.last) {
		return
	}
	p.last, p.drawn = now.Add(200*time.Millisecond), true
	rate := float64(done) / now.Sub(p.start).Seconds()
	_, _ = fmt.Fprintf(p.c.Err, "\r%s: %s of %s, %s/s\x1b[K", p.what, size(done), size(total), size(int64(rate)))
}

// end removes the line.
func (p *progress) end() {
	if p.drawn {
		_, _ = fmt.Fprint(p.c.Err, "\r\x1b[K")
	}
}

// size writes a number of bytes the way people read it.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	for _, u := range []string{"KiB", "MiB", "GiB"} {
		v /= 1024
		if v < 1024 {
			return fmt.Sprintf("%.1f %s", v, u)
		}
	}
	return fmt.Sprintf("%.1f TiB", v/1024)
}
