package s3test

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// errCut is how a body ends that was planned to be cut.
var errCut = errors.New("s3test: cut")

// body is a body on its way through the proxy.
type body struct {
	io.Reader
	io.Closer
	plan  bodyPlan
	count *atomic.Int64   // bytes that passed
	heal  <-chan struct{} // ends a stall
	off   int64
}

// Read reads up to the next offset at which something happens.
func (b *body) Read(p []byte) (int, error) {
	if b.off == b.plan.stallAt {
		<-b.heal
		return 0, errCut
	}
	if b.off == b.plan.cutAt {
		return 0, errCut
	}
	for _, at := range []int64{b.plan.stallAt, b.plan.cutAt} {
		if left := at - b.off; left > 0 && left < int64(len(p)) {
			p = p[:left]
		}
	}
	if b.plan.rate > 0 { // twenty steps a second
		p = p[:min(int64(len(p)), max(1, b.plan.rate/20))]
	}
	n, err := b.Reader.Read(p)
	if at := b.plan.flipAt - b.off; at >= 0 && at < int64(n) {
		p[at] ^= 1
	}
	if b.plan.rate > 0 {
		time.Sleep(time.Duration(n) * time.Second / time.Duration(b.plan.rate))
	}
	b.off += int64(n)
	b.count.Add(int64(n))
	return n, err
}

// prompt tells whether what was read has to be sent on at once, because of what comes next.
func (b *bodyPlan) prompt() bool { return b.cutAt >= 0 || b.stallAt >= 0 || b.rate > 0 }
