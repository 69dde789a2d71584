package store

import "context"

// progressKey is the key of the function in a context of WithProgress.
type progressKey struct{}

// WithProgress returns a context with which Verify tells how far its reading of all data is, in
// bytes of packs, often and from one goroutine. report must not block: the store is waiting.
func WithProgress(ctx context.Context, report func(done, total int64)) context.Context {
	return context.WithValue(ctx, progressKey{}, report)
}

// progressOf returns what takes the number of bytes that were read, out of total.
func progressOf(ctx context.Context, total int64) func(n int64) {
	report, ok := ctx.Value(progressKey{}).(func(done, total int64))
	if !ok {
		return func(int64) {}
	}
	done := int64(0)
	return func(n int64) {
		done += n
		report(done, total)
	}
}

// Progress tells the function of WithProgress, if there is one, how far reading is that goes on
// elsewhere.
func Progress(ctx context.Context, done, total int64) {
	if report, ok := ctx.Value(progressKey{}).(func(done, total int64)); ok {
		report(done, total)
	}
}
