package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/collect"

	"github.com/ckptfs/ckptfs/store/fleet"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/layout"
)

// A process with a cache folder of its own is to a bucket what a machine is. It is told
// location, cache and seed, works until its input ends, and prints a journal:
//
//	acked TOKEN     Commit of the image with this token returned nil
//	removing TOKEN  it is about to be removed
//	read TOKEN, gc, lost  what else it did, for the record
//
// Names of images are A.B-TOKEN-N: A and B are the seeds of their content, N changes when
// they are renamed.

// helperMachine is that process.
func helperMachine(args []string) error {
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	s, err := Open(args[0], machineOptions(args[1]))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	var stop atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when our parent says so, or is gone
		stop.Store(true)
	}()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() {
			w := machineWork{s: s, rnd: rand.New(rand.NewPCG(seed, uint64(i)))}
			for !stop.Load() && errs[i] == nil {
				errs[i] = w.step()
			}
			stop.Store(true)
		})
	}
	wg.Wait()
	return errors.Join(append(errs, s.Close())...)
}

// machineOptions are those of every machine. Patience is long, since the machine of the
// test may be slow; grace comes from the bucket.
func machineOptions(cache string) Options {
	return Options{Cache: cache, Patience: time.Minute, attempt: 20 * time.Second, PackSize: 512 << 10, CheckHashes: true}
}

type machineWork struct {
	s   *Store
	rnd *rand.Rand
}

// step does one thing, and fails if that went wrong for another reason than what other
// machines did to the same image meanwhile.
func (w *machineWork) step() error {
	list, err := w.s.List()
	if err != nil {
		return err
	}
	name := ""
	if len(list) > 0 {
		name = list[w.rnd.IntN(len(list))].Name
	}
	switch k := w.rnd.IntN(16); {
	case k == 0:
		fmt.Println("gc")
		_, err = w.s.GC(context.Background())
	case name == "" || k < 8 && len(list) < 24:
		err = w.ingest()
	case k < 10:
		err = w.read(name)
	case k < 12:
		err = w.s.Rename(name, name[:strings.LastIndex(name, "-")]+fmt.Sprintf("-%x", w.rnd.Uint32()))
	default:
		fmt.Println("removing", tokenOf(name))
		err = w.s.Remove(name)
	}
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return nil
	}
	return err
}

func (w *machineWork) ingest() error {
	a, b, token := w.rnd.Uint64N(12), w.rnd.Uint64N(12), w.rnd.Uint64()
	in, err := w.s.Begin(context.Background(), fmt.Sprintf("%d.%d-%x-0", a, b, token))
	if err != nil {
		return err
	}
	defer in.Abort()
	for _, c := range machineImage(a, b) {
		if err = in.Put(chunk.Sum(c), c); err != nil {
			break
		}
	}
	if err == nil && w.rnd.IntN(8) == 0 {
		return nil
	}
	if err == nil {
		err = in.Commit()
	}
	if errors.Is(err, fleet.ErrOutOfTouch) { // we were too slow, and saw it
		fmt.Println("lost")
		return nil
	}
	if err == nil {
		fmt.Printf("acked %x\n", token)
	}
	return err
}

// read compares an image with what its name tells.
func (w *machineWork) read(name string) error {
	begun := time.Now()
	err := compareMachineImage(w.s, name)
	if err == nil {
		fmt.Println("read", tokenOf(name))
	}
	if errors.Is(err, ErrDamaged) {
		_, gerr := w.s.sh.Bucket.Stat(context.Background(), "version")
		err = fmt.Errorf("%w (after %v, version: %v)", err, time.Since(begun), gerr)
	}
	// A lease that is late because the machine stood still protects nothing.
	if errors.Is(err, ErrDamaged) && time.Since(begun) > w.s.sh.Grace/2 {
		if lerr := w.s.lookAround(fleet.Now()); lerr != nil {
			return lerr
		}
		if _, gerr := w.s.Get(name); errors.Is(gerr, fs.ErrNotExist) {
			fmt.Println("lost")
			return nil
		}
	}
	return err
}

func compareMachineImage(s *Store, name string) error {
	var a, b uint64
	if _, err := fmt.Sscanf(name, "%d.%d-", &a, &b); err != nil {
		return fmt.Errorf("image %q: %w", name, err)
	}
	got, err := readImage(s, name)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, bytes.Join(machineImage(a, b), nil)) {
		return fmt.Errorf("image %q is not what was put", name)
	}
	return nil
}

// machineImage shares halves with many others.
func machineImage(a, b uint64) [][]byte { return append(testImage(a, 12), testImage(b, 12)...) }

func tokenOf(name string) string { return strings.Split(name, "-")[1] }

// machine is such a process as the test sees it.
type machine struct {
	cmd     *exec.Cmd
	in      io.Closer
	cache   string
	journal bytes.Buffer
	errs    bytes.Buffer
}

func startMachine(t *testing.T, loc, cache string, seed uint64) *machine {
	t.Helper()
	m := &machine{cmd: helperCmd("machine", loc, cache, fmt.Sprint(seed)), cache: cache}
	m.cmd.Stdout, m.cmd.Stderr = &m.journal, &m.errs
	in, err := m.cmd.StdinPipe()
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	m.in = in
	return m
}

// kill ends it in the middle of what it does.
func (m *machine) kill(t *testing.T) {
	t.Helper()
	_ = m.cmd.Process.Kill() // it may have ended, which Wait tells
	err := m.cmd.Wait()
	if m.cmd.ProcessState.Exited() {
		t.Errorf("a machine ended by itself: %v\n%s", err, m.errs.String())
	}
}

// stop has it end in good order.
func (m *machine) stop(t *testing.T) {
	t.Helper()
	m.in.Close()
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("a machine failed: %v\n%s", err, m.errs.String())
	}
}

// deeds counts the lines of journals by their first word, and lists the tokens of two.
type deeds struct {
	count           map[string]int
	acked, removing map[string]bool
}

func (d *deeds) add(journal string) {
	for line := range strings.Lines(journal) {
		word, token, _ := strings.Cut(strings.TrimSpace(line), " ")
		d.count[word]++
		switch word {
		case "acked":
			d.acked[token] = true
		case "removing":
			d.removing[token] = true
		}
	}
}

// TestBucketMachines: processes work on one bucket at once and some are killed. Nothing that
// was acknowledged is lost, and in the end nothing stays that nobody needs.
func TestBucketMachines(t *testing.T) {
	kills := 8
	if n, err := strconv.Atoi(os.Getenv("CKPTFS_SOAK")); err == nil {
		kills = n
	}
	loc, _ := inBucket(t)
	o := machineOptions(t.TempDir())
	o.Grace = 2 * time.Second
	open(t, loc, o).Close() // makes the version object, so that all have this grace
	base := uint64(time.Now().UnixNano())
	t.Logf("seeds from %d on", base)
	d := &deeds{map[string]int{}, map[string]bool{}, map[string]bool{}}
	runMachines(t, loc, base, kills, d)
	t.Logf("%d kills, and %v", kills, d.count)

	o.Cache = t.TempDir()
	s := open(t, loc, o)
	wantDeeds(t, s, d)
	wantEmptied(t, s)
}

func runMachines(t *testing.T, loc string, seed uint64, kills int, d *deeds) {
	rnd := rand.New(rand.NewPCG(seed, 77))
	var live []*machine
	for range 4 {
		live = append(live, startMachine(t, loc, t.TempDir(), seed))
		seed++
	}
	for range kills {
		time.Sleep(200*time.Millisecond + time.Duration(rnd.Int64N(int64(2*time.Second))))
		i := rnd.IntN(len(live))
		m := live[i]
		m.kill(t)
		d.add(m.journal.String())
		if rnd.IntN(2) == 0 {
			m.cache = t.TempDir()
		}
		live[i] = startMachine(t, loc, m.cache, seed)
		seed++
		if t.Failed() {
			break
		}
	}
	for _, m := range live {
		m.stop(t)
		d.add(m.journal.String())
	}
}

// wantDeeds compares a bucket with what machines say that they did.
func wantDeeds(t *testing.T, s *Store, d *deeds) {
	t.Helper()
	wantClean(t, s)
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, im := range list {
		listed[tokenOf(im.Name)] = true
		if err := compareMachineImage(s, im.Name); err != nil {
			t.Error(err)
		}
	}
	for token := range d.acked {
		if !listed[token] && !d.removing[token] {
			t.Errorf("image %s was acknowledged, nobody removed it, and it is not listed", token)
		}
	}
	if len(d.acked) == 0 {
		t.Error("nothing was stored")
	}
	t.Logf("%d images compared", len(list))
}

// wantEmptied removes all images. Two runs of GC must leave nothing.
func wantEmptied(t *testing.T, s *Store) {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range list {
		if err := s.Remove(im.Name); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		time.Sleep(collect.YoungPacks*s.sh.Grace + 1500*time.Millisecond)
		gc(t, s)
	}
	for _, dir := range []string{layout.Packs, layout.Images, fleet.Markers, fleet.Leases} {
		err := s.sh.Bucket.List(t.Context(), dir+"/", "", func(o bucket.Object) {
			if o.Key != fleet.LastGC {
				t.Errorf("%s is left", o.Key)
			}
		})
		if err != nil {
			t.Error(err)
		}
	}
}
