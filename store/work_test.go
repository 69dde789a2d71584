package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ckptfs/ckptfs/store/chunk"
)

// worker works on a store and says what it is about to do and what the store confirmed.
// Names of images tell the seed of their content and are never used twice.
type worker struct {
	s   *Store
	mu  sync.Mutex
	out io.Writer
	own []string // confirmed images that nobody is about to remove
}

// work ingests, removes, renames, collects, settles and merges until something fails. Every other
// seed has a second ingest going on beside.
func work(s *Store, seed uint64, out io.Writer) error {
	list, err := s.List()
	if err != nil {
		return err
	}
	w := &worker{s: s, out: out}
	for _, im := range list {
		w.own = append(w.own, im.Name)
	}
	end := make(chan error, 2)
	go w.repeat(seed, 2, w.step, end)
	if seed%2 == 0 {
		go w.repeat(seed, 3, w.ingest, end)
	}
	return <-end
}

func (w *worker) repeat(seed, stream uint64, step func(*rand.Rand) error, end chan<- error) {
	rnd := rand.New(rand.NewPCG(seed, stream))
	for {
		if err := step(rnd); err != nil {
			end <- err
			return
		}
	}
}

func (w *worker) step(rnd *rand.Rand) error {
	name, n := w.pick(rnd)
	switch k := rnd.IntN(9); {
	case n > 12, k == 1 && n > 0:
		return w.remove(name)
	case k == 2 && n > 0:
		return w.rename(name, fmt.Sprintf("%s-%x", strings.SplitN(name, "-", 2)[0], rnd.Uint64()))
	case k == 0:
		_, err := w.s.GC(context.Background())
		return err
	case k == 4:
		_, err := w.s.Settle(context.Background(), 1+rnd.IntN(2))
		return err
	case k == 3:
		w.s.maint.Lock()
		defer w.s.maint.Unlock()
		return w.s.flushIndex(rnd.IntN(2) == 0)
	}
	return w.ingest(rnd)
}

// pick chooses one of n images.
func (w *worker) pick(rnd *rand.Rand) (name string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n = len(w.own); n > 0 {
		name = w.own[rnd.IntN(n)]
	}
	return name, n
}

// say tells the parent in one write, so that no line is cut, and notes whose image it is.
func (w *worker) say(lost, got string, words ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.own = slices.DeleteFunc(w.own, func(s string) bool { return s == lost })
	if got != "" {
		w.own = append(w.own, got)
	}
	fmt.Fprintln(w.out, strings.Join(words, " ")) // who does not listen any more kills us
}

func (w *worker) remove(name string) error {
	w.say(name, "", "remove", name)
	err := w.s.Remove(name)
	if err == nil {
		w.say("", "", "removed", name)
	}
	return err
}

func (w *worker) rename(old, name string) error {
	w.say(old, "", "rename", old, name)
	err := w.s.Rename(old, name)
	if err == nil {
		w.say("", name, "renamed", old, name)
	}
	return err
}

func (w *worker) ingest(rnd *rand.Rand) error {
	seed := rnd.Uint64N(20)
	name := fmt.Sprintf("%d-%x", seed, rnd.Uint64())
	w.say("", "", "begin", name)
	in, err := w.s.Begin(context.Background(), name)
	if err != nil {
		return err
	}
	for _, c := range testImage(seed, 40) {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			return err
		}
	}
	if rnd.IntN(6) == 0 {
		err := in.Abort()
		w.say("", "", "aborted", name)
		return err
	}
	if err := in.Commit(); err != nil {
		return err
	}
	w.say("", name, "committed", name)
	return nil
}

// journal is what must be true of a store after what a worker said.
type journal map[string]standing

// standing is what is known of an image.
type standing struct {
	there, gone bool   // neither: it may be there or not
	or          string // the name it has if it is not there, or was before; exactly one of both is
}

// read goes on with what a worker said.
func (j journal) read(said []string) {
	for _, line := range said {
		w := strings.Fields(line)
		switch w[0] {
		case "begin", "remove":
			j[w[1]] = standing{}
		case "committed":
			j[w[1]] = standing{there: true}
		case "aborted", "removed":
			j[w[1]] = standing{gone: true}
		case "rename":
			j[w[1]], j[w[2]] = standing{or: w[2]}, standing{or: w[1]}
		case "renamed":
			j[w[1]], j[w[2]] = standing{gone: true}, standing{there: true}
		}
	}
}

// check reports what is wrong with a store, and what is listed is what must be from here
// on. It returns how many images it compared.
func (j journal) check(s *Store) (int, error) {
	if err := cleanStore(s); err != nil {
		return 0, err
	}
	list, err := s.List()
	if err != nil {
		return 0, err
	}
	listed := map[string]bool{}
	for _, im := range list {
		listed[im.Name] = true
		if st, ok := j[im.Name]; !ok || st.gone {
			return 0, fmt.Errorf("image %q is listed: it was removed, renamed, aborted or never begun", im.Name)
		}
		if err := sameImage(s, im.Name); err != nil {
			return 0, err
		}
	}
	for name, st := range j {
		if st.there && !listed[name] {
			return 0, fmt.Errorf("image %q was confirmed and is lost", name)
		}
		if st.or != "" && listed[name] == listed[st.or] {
			return 0, fmt.Errorf("renaming %q and %q: both are %v", name, st.or, listed[name])
		}
	}
	for name := range j {
		j[name] = standing{there: listed[name], gone: !listed[name]}
	}
	return len(list), nil
}

// cleanStore returns the faults that Verify finds.
func cleanStore(s *Store) error {
	var faults []string
	err := s.Verify(context.Background(), true, func(f string) { faults = append(faults, f) })
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, strings.Join(faults, "\n"))
	}
	return nil
}

// sameImage compares an image with what its name says.
func sameImage(s *Store, name string) error {
	seed, err := strconv.ParseUint(strings.SplitN(name, "-", 2)[0], 10, 64)
	if err != nil {
		return err
	}
	got, err := readImage(s, name)
	if err == nil && !bytes.Equal(got, bytes.Join(testImage(seed, 40), nil)) {
		err = errors.New("it differs from what was put")
	}
	if err != nil {
		return fmt.Errorf("image %q: %w", name, err)
	}
	return nil
}

// helperProc is a helper that runs.
type helperProc struct {
	cmd    *exec.Cmd
	ready  chan struct{} // closed when the store is open
	done   chan struct{} // closed at the end
	said   []string      // complete then
	stderr bytes.Buffer  // complete after kill
}

func startHelper(t *testing.T, args ...string) *helperProc {
	t.Helper()
	h := &helperProc{cmd: helperCmd(args...), ready: make(chan struct{}), done: make(chan struct{})}
	h.cmd.Stderr = &h.stderr
	out, err := h.cmd.StdoutPipe()
	if err == nil {
		err = h.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(h.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == "ready" {
				close(h.ready)
				continue
			}
			h.said = append(h.said, lines.Text())
		}
	}()
	return h
}

// kill ends the helper and returns how it ended.
func (h *helperProc) kill() error {
	h.cmd.Process.Kill() // it may have ended already
	<-h.done
	return h.cmd.Wait()
}
