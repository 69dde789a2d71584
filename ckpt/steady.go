package ckpt

import (
	"slices"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
)

// How long a refusal must be seen before it is believed, and how many looks at a tree that
// changes all the time are worth it. On a busy machine a process that opens a file for
// microseconds can be kept from closing it for tens of milliseconds.
const (
	steadyTime  = 50 * time.Millisecond
	steadyPause = 16 * time.Millisecond // between two looks, at most
	steadyLooks = 16
)

// steadyLook looks at a tree until it finds nothing to refuse, or the same for some time. A
// process that ends, execs or forks while it is looked at can seem to be what it is not.
func steadyLook(root int, set policy.Set) (*survey, error) {
	return steadyLookFor(root, set, steadyTime, steadyLooks)
}

func steadyLookFor(root int, set policy.Set, long time.Duration, looks int) (*survey, error) {
	since := time.Now()
	s, err := look(root, set)
	pause := time.Millisecond
	seen := lasting{}
	for try := 1; err == nil && try < looks && len(s.refusals()) > 0; try++ {
		before := s.refusals()
		time.Sleep(pause)
		pause = min(2*pause, steadyPause)
		again := time.Now()
		if s, err = look(root, set); err != nil {
			break
		}
		seen.count(s.refusals())
		if try == looks-1 {
			s.passing = seen
		}
		if !slices.Equal(before, s.refusals()) {
			since = again
		} else if time.Since(since) >= long {
			break
		}
	}
	return s, err
}

// lasting counts in how many looks, up to the last one, each refusal has been found.
type lasting map[string]int

func (l lasting) count(refusals []string) {
	for text := range l {
		if !slices.Contains(refusals, text) {
			delete(l, text)
		}
	}
	for _, text := range refusals {
		l[text]++
	}
}

// fleeting reports whether something is refused of a descriptor that was not so for long, in a tree of which each look
// refuses something else: where connections are made and closed all the time, it has always come upon some
// halfway. What they are can only be said in the freeze.
func (s *survey) fleeting(f image.Finding) bool {
	return s.passing != nil && f.Severity == image.Refuse && f.FD != image.NoFD && s.passing[f.String()] < steadyLooks/2
}

// refusals are the sentences of what is refused.
func (s *survey) refusals() []string {
	var out []string
	for _, f := range s.findings {
		if f.Severity == image.Refuse {
			out = append(out, f.String())
		}
	}
	return out
}
