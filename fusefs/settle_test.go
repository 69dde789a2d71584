package fusefs

import (
	"context"
	"testing"
	"time"
)

func TestSettler(t *testing.T) {
	now := time.Now()
	s := newSettler(now)
	if ctx, wait := s.begin(t.Context(), now); ctx != nil || wait != settleDelay {
		t.Errorf("right after the start: %v, %v", ctx, wait)
	}
	ctx, _ := s.begin(t.Context(), now.Add(settleDelay))
	if ctx == nil || s.end(ctx, now) {
		t.Error("was cut short?")
	}
	now = now.Add(settleDelay)
	ctx, _ = s.begin(t.Context(), now)
	if ctx == nil || ctx.Err() != nil {
		t.Fatal("does not begin although nothing is stored")
	}
	stored := s.storing()
	if ctx.Err() == nil {
		t.Error("does not give way")
	}
	if !s.end(ctx, now) {
		t.Error("was not cut short?")
	}
	if ctx, wait := s.begin(t.Context(), now.Add(settlePatience-1)); ctx != nil || wait != settleDelay {
		t.Errorf("while something is stored: %v, %v", ctx, wait)
	}
	ctx, _ = s.begin(t.Context(), now.Add(settlePatience))
	if ctx == nil {
		t.Fatal("its patience is without end")
	}
	again := s.storing()
	if ctx.Err() != nil {
		t.Error("starves")
	}
	if d, ok := ctx.Deadline(); !ok || time.Until(d) > settleSlice {
		t.Error("goes on beside a checkpoint without end")
	}
	if s.end(ctx, now.Add(settlePatience)) {
		t.Error("was cut short?")
	}
	if ctx, _ := s.begin(t.Context(), now.Add(settlePatience)); ctx != nil {
		t.Error("has no patience any more")
	}
	stored()
	if again(); s.busy != 0 {
		t.Errorf("%d are being stored", s.busy)
	}
	<-s.due
	parent, unmount := context.WithCancel(t.Context())
	ctx, _ = s.begin(parent, time.Now().Add(settleDelay))
	unmount()
	if ctx == nil || ctx.Err() == nil {
		t.Error("goes on after the end of the mount")
	}
}
