package fusefs

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const mib = 1 << 20
	begun := time.Unix(1000, 0)
	for _, c := range []struct {
		what      string
		put, read int64
		at        time.Duration // since the begin
		last      time.Duration
		waited    time.Duration
		want      bool
	}{
		{"close behind", 20 * mib, 15 * mib, time.Second, time.Second, 0, false},
		{"behind", 40 * mib, 30 * mib, time.Second, time.Second, 0, true},
		{"it does something else", 40 * mib, 30 * mib, time.Second, time.Second - 2*paceIdle, 0, false},
		{"the budget is spent", 40 * mib, 30 * mib, time.Second, time.Second, 251 * time.Millisecond, false},
		{"far slower than we are", 400 * mib, 100 * mib, time.Second, time.Second, 0, false},
		{"too early to say", 40 * mib, 2 * mib, time.Second, time.Second, 0, true},
		{"it never read", 40 * mib, 0, time.Second, -time.Hour, 0, false},
	} {
		p := pace{begun: begun, last: begun.Add(c.last), waited: c.waited}
		if got := p.waitFor(c.put, c.read, begun.Add(c.at)); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// TestKeepPace: who waits goes on when the reader has read, when it leaves, and when the checkpoint is given up.
func TestKeepPace(t *testing.T) {
	done := make(chan struct{})
	for what, end := range map[string]func(s *session){
		"it read":     func(s *session) { s.wasRead(0, 40<<20) },
		"it left":     func(s *session) { s.close() },
		"given up":    func(*session) { close(done) },
		"it does not": func(*session) {},
	} {
		s := &session{put: 40 << 20, caught: make(chan struct{}, 1), cancel: func(error) {}}
		s.pace.begun = time.Now().Add(-time.Hour) // so that the budget is not what ends it
		s.pace.last = time.Now()
		ended := make(chan struct{})
		go func() {
			s.keepPace(done)
			close(ended)
		}()
		end(s)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Errorf("%s: it still waits", what)
		}
	}
}
