package fusefs

import (
	"context"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// settleDelay is how long no checkpoint was stored before what they stored is settled: one
	// after the other should not find us in its way.
	settleDelay = 3 * time.Second
	// settlePatience is how long settling gives way before it goes on all the same.
	settlePatience = 2 * time.Minute
	// settleSlice is how long it then goes on before it pauses for a settleDelay.
	settleSlice = 5 * time.Second
)

// settler decides when to compress better what checkpoints have stored fast:
//
//  1. It is due when a checkpoint has been stored, and when the mount begins.
//  2. It waits until nothing was stored for a while, and stops as soon as something is.
//  3. It gives way to GC too, which makes room when the disk is full.
//  4. Who stores all the time would let it starve, and the store grow to half as much again.
//     So when its patience is over it works beside them, a slice at a time, until a run ends
//     that was not cut short.
type settler struct {
	due chan struct{}

	mu      sync.Mutex
	busy    int                // checkpoints that are being stored
	idle    time.Time          // when the last of them ended
	stop    context.CancelFunc // ends what goes on; nil if nothing does
	yields  bool               // what goes on gives way
	waiting time.Time          // since when it gave way without getting done; zero if it did not
}

func newSettler(now time.Time) *settler {
	return &settler{due: make(chan struct{}, 1), idle: now}
}

// storing says that a checkpoint is being stored. Call the function that it returns at its end.
func (s *settler) storing() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy++
	if s.stop != nil && s.yields {
		s.stop()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy--
		s.idle = time.Now()
		poke(s.due)
	}
}

// begin returns the context of a run, or nil and how long to wait before asking again.
func (s *settler) begin(parent context.Context, now time.Time) (ctx context.Context, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if wait = settleDelay; s.busy == 0 {
		wait -= now.Sub(s.idle)
	}
	if wait <= 0 {
		ctx, s.stop = context.WithCancel(parent)
		s.yields = true
		return ctx, 0
	}
	if s.waiting.IsZero() {
		s.waiting = now
	}
	if now.Sub(s.waiting) < settlePatience {
		return nil, wait
	}
	ctx, s.stop = context.WithTimeout(parent, settleSlice)
	s.yields = false
	return ctx, 0
}

// end notes how a run ended. It reports whether it was cut short.
func (s *settler) end(ctx context.Context, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	cut := ctx.Err() != nil
	switch {
	case !cut:
		s.waiting = time.Time{}
	case s.waiting.IsZero():
		s.waiting = now
	}
	s.stop()
	s.stop = nil
	return cut
}

// settle compresses what checkpoints have stored fast, in the background, until the mount ends.
func (f *filesystem) settle() {
	for {
		select {
		case <-f.settler.due:
		case <-f.ctx.Done():
			return
		}
		for more := true; more; {
			ctx, wait := f.settler.begin(f.ctx, time.Now())
			if ctx != nil {
				more = f.settleSome(ctx)
				if f.settler.end(ctx, time.Now()) {
					more, wait = true, settleDelay
				}
			}
			select {
			case <-time.After(wait):
			case <-f.ctx.Done():
				return
			}
		}
		debug.FreeOSMemory() // what checkpoints and this took, and nobody needs while nothing goes on
	}
}

// settleSome does a part of what is to be done. It reports whether there is more.
func (f *filesystem) settleSome(ctx context.Context) bool {
	rep, err := f.store.Settle(ctx, 1)
	if rep.Settled > 0 {
		f.logf("compressed again what was stored fast: %d bytes became %d, %d packs are left", rep.SettledFrom, rep.SettledTo, rep.Unsettled)
	}
	if err != nil {
		if ctx.Err() == nil {
			f.logf("%v; tried again after the next checkpoint", err)
		}
		return false
	}
	return rep.Packs > 0 && rep.Unsettled > 0
}
