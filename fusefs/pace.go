package fusefs

import "time"

// A checkpoint is stored as fast as that goes, however slow its reader is: as long, what the target writes has to be copied.
// But what a reader does not get within the window that the store keeps of a running ingest has to be read, decompressed and
// compared with its hash again, which takes more of the processors than all the rest. So who is only a little slower than the
// storing is waited for, within a budget.
const (
	paceBehind = 8 << 20               // bytes that the reader may be behind: half the window of a store
	paceIdle   = 20 * time.Millisecond // a reader that has not read for as long does something else
	paceStep   = 5 * time.Millisecond
	paceShare  = 4        // a part of the time since the begin that is spent waiting
	paceSure   = 64 << 20 // bytes after which it is clear whether the reader reads at less than half our speed
)

// pace is what a session knows of how its reader keeps up. All of it is guarded by the session's mu.
type pace struct {
	begun  time.Time
	waited time.Duration
	last   time.Time // when the reader went on
}

// waitFor reports whether the reader should be waited for, when so many bytes can be read and were read.
func (p *pace) waitFor(put, read int64, now time.Time) bool {
	switch {
	case put-read <= paceBehind, now.Sub(p.last) > paceIdle:
		return false
	case put > paceSure && read < put/2:
		return false
	}
	return p.waited < now.Sub(p.begun)/paceShare
}

// keepPace waits for a reader that falls behind. Not where the image refers to an earlier one: that has to be read in any case.
func (s *session) keepPace(done <-chan struct{}) {
	if s.base.Load() != nil {
		return
	}
	for {
		now := time.Now()
		s.mu.Lock()
		wait := !s.closed && s.pace.waitFor(s.put, s.readTo, now)
		s.mu.Unlock()
		if !wait {
			return
		}
		select {
		case <-s.caught:
		case <-time.After(paceStep):
		case <-done:
			return
		}
		s.mu.Lock()
		s.pace.waited += time.Since(now)
		s.mu.Unlock()
	}
}
