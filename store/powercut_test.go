package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
	"github.com/ckptfs/ckptfs/store/lossyfs"
)

// powerCuts lets the power go again and again under a process that works on one store.
type powerCuts struct {
	t    *testing.T
	mnt  string
	disk string // where the states after a cut are opened
	lies lossyfs.Lies
	mode string      // of the helper
	fs   *lossyfs.FS // at the next power-on
	j    journal

	images, temps, opens int
}

// newPowerCuts returns nil if nothing can be mounted.
func newPowerCuts(t *testing.T, lies lossyfs.Lies, mode string) *powerCuts {
	t.Helper()
	disk := tinyDisk(t, 1<<30)
	if disk == "" {
		return nil
	}
	return &powerCuts{t: t, mnt: t.TempDir(), disk: disk, lies: lies, mode: mode, fs: lossyfs.New(lies), j: journal{}}
}

// round is one life of the store. It returns what was lost, if anything was.
func (p *powerCuts) round(seed uint64) (lost error) {
	p.t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	if rnd.IntN(8) == 0 {
		p.fs, p.j = lossyfs.New(p.lies), journal{} // the first life of a store is special
	}
	p.work(rnd, seed)
	after, fates := p.fs.After(rnd, p.lies)
	dir, err := os.MkdirTemp(p.disk, "")
	if err == nil {
		err = after.Save(dir)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	last := rnd.IntN(2) == 0 // this copy ends here; the next life begins with what the disk held
	if err := p.check(filepath.Join(dir, "store"), rnd, last); err != nil {
		return fmt.Errorf("seed %d: %w\n\nlast changes:\n%s\n\nnot synced:\n%s", seed, err,
			strings.Join(p.fs.Trace(), "\n"), strings.Join(fates, "\n"))
	}
	p.fs = after
	if !last {
		if p.fs, err = lossyfs.Load(dir, p.lies); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		p.t.Fatal(err)
	}
	return nil
}

// work lets a helper work until the power goes.
func (p *powerCuts) work(rnd *rand.Rand, seed uint64) {
	p.t.Helper()
	p.fs.CutAt(cutPlan(rnd))
	unmount, err := p.fs.Mount(p.mnt)
	if err != nil {
		p.t.Fatal(err)
	}
	h := startHelper(p.t, p.mode, filepath.Join(p.mnt, "store"), fmt.Sprint(seed))
	select {
	case <-p.fs.Cut():
		time.Sleep(time.Duration(rnd.IntN(10)) * time.Millisecond) // what does it do without a disk?
	case <-h.done:
	case <-time.After(2 * time.Minute):
	}
	kerr := h.kill()
	if err := unmount(); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.fs.Cut():
	default:
		p.t.Fatalf("seed %d: the helper ended or hung before the cut: %v\n%s", seed, kerr, h.stderr.String())
	}
	for _, bad := range []string{"panic: ", "fatal error: ", "DATA RACE"} {
		if bytes.Contains(h.stderr.Bytes(), []byte(bad)) {
			p.t.Fatalf("seed %d: without a disk the helper says:\n%s", seed, h.stderr.String())
		}
	}
	select {
	case <-h.ready:
	default:
		p.opens++
	}
	p.j.read(h.said)
}

// cutPlan draws when the power goes: anywhere, or near what is rare.
func cutPlan(rnd *rand.Rand) lossyfs.Plan {
	plan := lossyfs.Plan{Finish: rnd.IntN(2) == 0}
	near := func(verb, ext string) func(string) bool {
		return func(change string) bool { return strings.HasPrefix(change, verb) && strings.HasSuffix(change, ext) }
	}
	switch rnd.IntN(6) {
	case 0: // the store is being opened
		plan.After = rnd.IntN(12)
	case 1: // GC removes packs, or an ingest is given up
		plan.Counts, plan.Skip, plan.After = near("remove ", disk.PackExt), 1+rnd.IntN(20), rnd.IntN(8)
	case 2: // runs were merged
		plan.Counts, plan.Skip, plan.After = near("remove ", disk.RunExt), 1+rnd.IntN(3), rnd.IntN(20)
	case 3: // an image appears, goes or gets another name
		plan.Counts, plan.Skip, plan.After = near("", disk.ImgExt), 1+rnd.IntN(30), rnd.IntN(4)
	default:
		plan.After = rnd.IntN(1000)
	}
	return plan
}

// check opens what a disk held after a cut.
func (p *powerCuts) check(dir string, rnd *rand.Rand, last bool) error {
	p.temps += countTemps(p.t, dir)
	if rnd.IntN(5) == 0 {
		os.RemoveAll(filepath.Join(dir, layout.Index)) // the packs alone must do
	}
	s, err := Open(dir, helperOptions(p.mode == "work sealed"))
	if err != nil {
		return err
	}
	defer s.Close()
	if n := countTemps(p.t, dir); n > 0 {
		return fmt.Errorf("%d unfinished files were left", n)
	}
	n, err := p.j.check(s)
	if err != nil {
		return err
	}
	p.images += n
	switch {
	case last:
		return emptyStore(s)
	case rnd.IntN(2) == 0:
		if _, err := s.GC(context.Background()); err != nil {
			return err
		}
		if _, err := p.j.check(s); err != nil {
			return fmt.Errorf("after gc: %w", err)
		}
	}
	return s.Close()
}

// emptyStore removes all images and reports what GC leaves behind.
func emptyStore(s *Store) error {
	list, err := s.List()
	if err != nil {
		return err
	}
	for _, im := range list {
		if err := s.Remove(im.Name); err != nil {
			return err
		}
	}
	if _, err := s.GC(context.Background()); err != nil {
		return err
	}
	for _, sub := range []string{layout.Packs, layout.Images} {
		ents, err := os.ReadDir(filepath.Join(s.dir, sub))
		if err != nil {
			return err
		}
		if len(ents) > 0 {
			return fmt.Errorf("%d files stay in %s without an image, one is %s", len(ents), sub, ents[0].Name())
		}
	}
	return s.Close()
}

// TestPowerCut lets the power go at random moments. Whatever of the unsynced reached the
// disk, the store is clean afterwards, what it confirmed is true, and what it lists reads
// back.
func TestPowerCut(t *testing.T) {
	p, sealed := newPowerCuts(t, lossyfs.Lies{}, "work"), newPowerCuts(t, lossyfs.Lies{}, "work sealed")
	if p == nil || sealed == nil {
		return
	}
	rounds := soakRounds(24)
	base := uint64(time.Now().UnixNano())
	t.Logf("seeds %d to %d", base, base+uint64(rounds)-1)
	for i := range rounds {
		if lost := p.round(base + uint64(i)); lost != nil {
			t.Fatal(lost)
		}
		p, sealed = sealed, p
	}
	t.Logf("%d cuts, %d of them in Open, %d images compared, %d unfinished files found and removed",
		rounds, p.opens+sealed.opens, p.images+sealed.images, p.temps+sealed.temps)
}

// TestPowerCutBites shows that the check finds what a store loses that does not sync.
func TestPowerCutBites(t *testing.T) {
	for name, lies := range map[string]lossyfs.Lies{"files": {Files: true}, "folders": {Folders: true}} {
		t.Run(name, func(t *testing.T) {
			var lost error
			p := newPowerCuts(t, lossyfs.Lies{}, "work")
			if p == nil {
				return
			}
			p.lies = lies // from the second life on
			for seed := uint64(0); seed < 40 && lost == nil; seed++ {
				lost = p.round(seed)
			}
			if lost == nil {
				t.Fatal("40 cuts, and nothing is missed")
			}
			t.Log(strings.SplitN(lost.Error(), "\n", 2)[0])
		})
	}
}
