package e2e

import (
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestLentTerminal: a session gets its controlling terminal back although not its leader but
// another process has it open, one that is restored before it or after it.
func TestLentTerminal(t *testing.T) {
	for _, mode := range []string{"later", "earlier"} {
		for _, plain := range []bool{true, false} {
			_, slave := openPTY(t)
			name := slave.Name()
			slave.Close()
			r := harness.Start(t, "ctltty", mode, name)
			if plain {
				r.Pass(false)
				continue
			}
			image := r.Dump()
			r.Kill()
			r.Restore(image)
			r.Pass(true)
		}
	}
}
