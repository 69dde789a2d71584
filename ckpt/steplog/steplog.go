// Package steplog logs the steps of a checkpoint or a restore with their times, for who wants to
// find out where one hangs or what takes long.
//
// A step is one line of key=value pairs (values with spaces are quoted as Go strings):
//
//	op=dump pid=4711 step=freeze at=1.2ms took=340µs threads=8 err="…"
//
// pid is the process the step is about, at when it began since the operation did, took how long
// it was; counts and the error follow. A nil *Log and all that comes from it do nothing.
//
// Lines are written by a goroutine of their own: in a freeze nobody may wait for whoever reads
// them, who could be the frozen process.
package steplog

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// Log takes the lines of any number of operations.
type Log struct {
	w io.Writer

	mu      sync.Mutex
	waiting bytes.Buffer
	idle    chan struct{} // closed when the writer has nothing to do; nil: there is none
}

// New logs to w, a Write per bunch of whole lines. What w fails to take is lost.
func New(w io.Writer) *Log { return &Log{w: w} }

// Flush waits until all lines are written, but not longer than patience.
func (l *Log) Flush(patience time.Duration) {
	if l == nil {
		return
	}
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-time.After(patience):
	}
}

// add hands a line to the writer, and starts it if it does not run.
func (l *Log) add(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting.Write(line)
	if l.idle == nil {
		l.idle = make(chan struct{})
		go l.write()
	}
}

func (l *Log) write() {
	for {
		l.mu.Lock()
		lines := bytes.Clone(l.waiting.Bytes())
		l.waiting.Reset()
		if len(lines) == 0 {
			close(l.idle)
			l.idle = nil
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		_, _ = l.w.Write(lines) // there is nobody to tell
	}
}

// Op is one checkpoint or restore.
type Op struct {
	log   *Log
	name  string
	start time.Time
}

// Begin starts an operation.
func (l *Log) Begin(name string) *Op {
	if l == nil {
		return nil
	}
	return &Op{log: l, name: name, start: time.Now()}
}

// Step is one step that has begun. It is for one goroutine.
type Step struct {
	op    *Op
	began time.Time
	name  string
	pid   int
	count []byte
}

// Step begins a step that is about a process. End logs it.
func (o *Op) Step(name string, pid int) *Step {
	if o == nil {
		return nil
	}
	return &Step{op: o, began: time.Now(), name: name, pid: pid}
}

// Count adds how many there were of something.
func (s *Step) Count(what string, n int64) *Step {
	if s == nil {
		return nil
	}
	s.count = fmt.Appendf(s.count, " %s=%d", what, n)
	return s
}

// End logs the step, with the error that ended it.
func (s *Step) End(err error) {
	if s == nil {
		return
	}
	took := time.Since(s.began)
	line := fmt.Appendf(nil, "op=%s pid=%d step=%s at=%v took=%v", s.op.name, s.pid, value(s.name), s.began.Sub(s.op.start), took)
	line = append(line, s.count...)
	if err != nil {
		line = append(line, " err="...)
		line = strconv.AppendQuote(line, err.Error())
	}
	s.op.log.add(append(line, '\n'))
}

// Do runs f as a step.
func (o *Op) Do(name string, pid int, f func() error) error {
	s := o.Step(name, pid)
	err := f()
	s.End(err)
	return err
}

// value quotes a value if it has to be.
func value(s string) string {
	if q := strconv.Quote(s); len(q) != len(s)+2 || bytes.ContainsAny([]byte(s), " =") {
		return q
	}
	return s
}
