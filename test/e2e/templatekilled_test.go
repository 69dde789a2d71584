package e2e

import (
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestTemplateKilled kills the daemon at random moments while it makes a template or restores from one: either the whole
// tree runs then and has the memory of the image, or nothing is left of it; and nothing of the template.
func TestTemplateKilled(t *testing.T) {
	m := harness.NewMount(t)
	r := harness.Start(t, "clones")
	members := len(r.Tree())
	before := r.Look()
	s := store(t, m, r)
	pages := func() { // what comes from the disk takes longer
		s.on()
		s.restore(r)
		r.Kill()
	}
	pages()
	full := timeOf(func() { s.restore(r) })
	r.Kill()
	write(t, s.template(), []byte("off"))
	making := timeOf(func() { s.on() })
	rng := rand.New(rand.NewPCG(12, 12))
	whole := 0
	for i := range soak(t, 12) {
		r.Again()
		s.n++
		line := "cp " + filepath.Join(s.dir, "image") + " " + m.Restore("killed-"+itoa(i))
		span := full
		if i%3 == 0 {
			write(t, s.template(), []byte("off"))
			line, span = "echo on > "+s.template(), making
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = exec.Command("sh", "-c", line).Run() // the killed daemon's answer is an error, or it was faster
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(span))))
		m.KillDaemon()
		<-done
		lives := func() bool { return !strings.ContainsRune("\x00ZX", rune(harness.State(r.PID))) }
		harness.Eventually(t, "all or nothing", func() bool {
			return (!harness.Exists(r.PID) || lives() && len(r.Tree()) == members) && harness.Stubs() == 0 && len(allTemplates(t)) == 0
		})
		if lives() {
			r.Alive()
			r.Same(before, "after a restore by a daemon that was killed")
			r.Kill()
			whole++
		}
		m.Again()
		s.on()
	}
	t.Logf("%d of the killed daemons had restored everything", whole)
	if s.restore(r) == 0 {
		t.Error("nothing is shared")
	}
	r.Pass(true)
}
