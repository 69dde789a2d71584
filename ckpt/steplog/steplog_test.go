package steplog

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	var b bytes.Buffer
	l := New(&b)
	op := l.Begin("dump")
	op.Step("freeze", 12).Count("threads", 3).Count("processes", 1).End(nil)
	err := op.Do("two words", 13, func() error { return errors.New("say \"no\"\n") })
	if err == nil {
		t.Error("Do lost the error")
	}
	l.Flush(time.Minute)
	want := `^op=dump pid=12 step=freeze at=\S+ took=\S+ threads=3 processes=1
op=dump pid=13 step="two words" at=\S+ took=\S+ err="say \\"no\\"\\n"
$`
	if !regexp.MustCompile(want).Match(b.Bytes()) {
		t.Errorf("logged %q", b.String())
	}
}

// Many goroutines log; every line comes out whole.
func TestConcurrent(t *testing.T) {
	var b bytes.Buffer
	l := New(&b)
	op := l.Begin("x")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for range 50 {
				op.Step("s", i).End(nil)
			}
		})
	}
	wg.Wait()
	l.Flush(time.Minute)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != 1000 {
		t.Errorf("%d lines", len(lines))
	}
	for _, s := range lines {
		if !strings.HasPrefix(s, "op=x pid=") || strings.Count(s, "op=") != 1 {
			t.Fatalf("line %q", s)
		}
	}
}

// stuck is a writer that takes nothing until it is closed.
type stuck chan struct{}

func (s stuck) Write(b []byte) (int, error) { <-s; return len(b), nil }

// Who logs does not wait for a reader that does not read.
func TestReaderThatHangs(t *testing.T) {
	w := make(stuck)
	defer close(w)
	l := New(w)
	for range 100 {
		l.Begin("x").Step("s", 1).End(nil)
	}
	l.Flush(time.Millisecond)
}

func TestOffCostsNothing(t *testing.T) {
	var l *Log
	n := testing.AllocsPerRun(100, func() {
		op := l.Begin("x")
		op.Step("s", 1).Count("n", 2).End(nil)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	l.Flush(time.Minute)
}
