package restore

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
)

// spares gives out ids for processes that do not care, none of which the image needs.
type spares struct {
	want map[int]bool
	last int
}

func newSpares(want map[int]bool) (*spares, error) {
	b, err := quickread.File("/proc/sys/kernel/pid_max")
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("restore: pid_max: %w", err)
	}
	return &spares{want: want, last: n}, nil
}

// next returns an id that is probably free, from the top, where the kernel comes last.
func (s *spares) next() (int, error) {
	for s.last--; s.last > 300; s.last-- {
		if !s.want[s.last] && !pidInUse(s.last) {
			return s.last, nil
		}
	}
	return 0, &HostError{What: "no process id is free", Remedy: "raise kernel.pid_max"}
}
