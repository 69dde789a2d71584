package e2e

import (
	"fmt"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestIPython: an interactive session with its line editor, its history in sqlite and the thread that writes it.
// Names and modules are there after each restore, and what was typed half is typed to the end.
func TestIPython(t *testing.T) {
	ipython := []string{harness.Tool(t, "env"), "PROMPT_TOOLKIT_NO_CPR=1", "PATH=/usr/bin:/bin", "ipython3", "--no-banner", "--colors=NoColor"}
	hosted(t, ipython, func(s *screen, round int) {
		if round == 0 {
			s.types("", "In [1]:")
			s.types("import math, collections; seen = collections.Counter(); n = 100\r", "In [2]:")
			s.types("print('n ", "print")
		} else {
			s.types("is', n, math.floor(math.pi), len(seen))\r", fmt.Sprintf("n is %d 3 %d", 100+round, round))
			s.types("print('n ", "print")
		}
		s.types("\x15", "") // the line is given up
		s.types(fmt.Sprintf("n += 1; seen[%d] += 1; print('sum', sum(seen.values()))\r", round), fmt.Sprintf("sum %d", round+1))
		s.types("print('n ", "print")
	})
}
