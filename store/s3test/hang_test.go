package s3test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// TestHang meets servers that keep the connection and do nothing: only a deadline helps.
func TestHang(t *testing.T) {
	b := newBench(t)
	big := randomBytes(5, 16<<20) // more than the kernel's buffers take
	doPut := func(ctx context.Context) error {
		_, err := b.client.PutObject(ctx, b.Bucket, "new", bytes.NewReader(big), int64(len(big)), minio.PutObjectOptions{DisableMultipart: true})
		return err
	}
	doGet := func(ctx context.Context) error {
		r, _, _, err := minio.Core{Client: b.client}.GetObject(ctx, b.Bucket, "k", minio.GetObjectOptions{})
		if err == nil {
			defer r.Close()
			_, err = new(bytes.Buffer).ReadFrom(r)
		}
		return err
	}
	for _, c := range []struct {
		name  string
		kind  Kind
		fault Fault
		do    func(context.Context) error
	}{
		{"black hole for a GET", Get, BlackHole(), doGet},
		{"black hole for a PUT", Put, BlackHole(), doPut},
		{"stalled GET", Get, StallResponse(1000), doGet},
		{"stalled PUT", Put, StallRequest(1000), doPut},
	} {
		t.Run(c.name, func(t *testing.T) {
			rule := b.breaks(c.kind, c.fault)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- c.do(ctx) }()
			for rule.Hits() == 0 {
				time.Sleep(time.Millisecond)
			}
			select {
			case err := <-done:
				t.Errorf("it ended: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("given up: %v", err)
			}
			b.mustHit(t, rule)
			mustLack(t, b.direct, b.Bucket, "new")
		})
	}
}

// TestHeal breaks what hangs, so that a client without a deadline goes on.
func TestHeal(t *testing.T) {
	b := newBench(t)
	rule := b.breaks(Get, BlackHole())
	done := make(chan error, 1)
	go func() {
		_, err := get(t, b.client, b.Bucket, "k", 0, 0)
		done <- err
	}()
	for rule.Hits() == 0 {
		time.Sleep(time.Millisecond)
	}
	b.mustHit(t, rule)
	<-done // with or without an error: net/http asks again if a connection broke that it had used before
	mustHold(t, b.client, b.Bucket, "k", b.data)
}

// TestSlow measures nothing but that slowness does not change what arrives, and takes no
// less than it must.
func TestSlow(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name   string
		kind   Kind
		faults []Fault
		least  time.Duration
	}{
		{"late", Get, []Fault{Delay(100 * time.Millisecond)}, 100 * time.Millisecond},
		{"dripping", Get, []Fault{SlowResponse(5_000_000)}, 200 * time.Millisecond},
		{"slow to take", Put, []Fault{SlowRequest(5_000_000)}, 200 * time.Millisecond},
		{"late and dripping", Get, []Fault{Delay(50 * time.Millisecond), SlowResponse(10_000_000)}, 150 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			rule := b.breaks(c.kind, c.faults...)
			start := time.Now()
			if c.kind == Put {
				mustPut(t, b.client, b.Bucket, "k", b.data)
			} else {
				mustHold(t, b.client, b.Bucket, "k", b.data)
			}
			if took := time.Since(start); took < c.least {
				t.Errorf("took %v, not even %v", took, c.least)
			}
			b.mustHit(t, rule)
		})
	}
}
