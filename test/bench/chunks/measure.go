package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// scheme is one way to store images.
type scheme struct {
	cutting
	codec codecKind
}

func (s *scheme) name() string { return s.cutting.name() + ", " + s.codec.name }

// sized is what a scheme stores.
type sized struct {
	scheme
	tally    tally
	programs map[string]int64 // bytes for the images of each
}

// cuttings returns what is compared: the plain ones first, then variants.
func cuttings() []cutting {
	return []cutting{{size: 4 << 10}, {size: 16 << 10}, {size: 64 << 10}, {size: 256 << 10},
		{size: 4 << 10, frame: 64 << 10}, {size: 4 << 10, frame: 256 << 10}, {size: 16 << 10, frame: 64 << 10},
		{size: 16 << 10, frame: 256 << 10}, {size: 4 << 10, frame: 64 << 10, runs: true},
		{size: 16 << 10, byContent: true}, {size: 64 << 10, byContent: true}, {size: 64 << 10, delta: true},
		{size: 256 << 10, delta: true}}
}

// sizes stores all images once for every cutting and counts what all codecs make of
// it, of one frame in sample.
func sizes(ctx context.Context, ins []*input, only []string, sample int, w io.Writer) error {
	printSizesHead(w)
	for _, c := range cuttings() {
		if !chosen(only, c.name()) {
			continue
		}
		kinds, err := c.kinds(ins)
		if err != nil {
			return err
		}
		all, logical, err := sizesOf(ctx, c, ins, sample, kinds)
		if err != nil {
			return err
		}
		for i := range all {
			all[i].print(w, logical)
		}
	}
	return nil
}

// kinds are the codecs that are tried with a cutting.
func (c *cutting) kinds(ins []*input) ([]codecKind, error) {
	kinds := []codecKind{codecS2, codecBetter, codecMinLZ, codecSuper, codecZstd}
	plain := c.frame == 0 && !c.byContent && !c.delta
	if plain {
		kinds = append(kinds, codecProbe, codecEntropy)
	}
	if c.size == 64<<10 && plain || c.frame == 64<<10 && !c.runs {
		kinds = append(kinds, codecDefault)
	}
	if c.size < 64<<10 && plain {
		k, err := train(ins, c.size)
		return append(kinds, k), err
	}
	return kinds, nil
}

// sizesOf stores all images in one way of cutting.
func sizesOf(ctx context.Context, c cutting, ins []*input, sample int, kinds []codecKind) (all []sized, logical int64, err error) {
	s, err := newMemstore(c, ins, sample, kinds...)
	if err != nil {
		return nil, 0, err
	}
	for _, k := range kinds {
		all = append(all, sized{scheme: scheme{c, k}, programs: map[string]int64{}})
	}
	before := make([]tally, len(kinds))
	for _, in := range ins {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		s.ingest(in)
		logical += int64(len(in.data))
		for i := range all {
			now := s.tally(i)
			grown := now
			grown.add(&before[i], -1)
			grown.extrapolate()
			all[i].tally.add(&grown, 1)
			all[i].programs[in.program] += grown.total()
			before[i] = now
		}
	}
	return all, logical, nil
}

// schemes are those whose speed is measured.
func schemes() (all []scheme) {
	for _, c := range cuttings() {
		if c.delta {
			continue
		}
		kinds := []codecKind{codecZstd}
		if c.frame == 0 && !c.byContent {
			kinds = []codecKind{codecS2, codecMinLZ, codecSuper, codecZstd, codecProbe}
		}
		for _, k := range kinds {
			all = append(all, scheme{c, k})
		}
	}
	framed := cutting{size: 4 << 10, frame: 64 << 10}
	return append(all, scheme{cutting{size: 64 << 10}, codecEntropy}, scheme{cutting{size: 64 << 10}, codecDefault},
		scheme{cutting{size: 64 << 10}, codecNone}, scheme{cutting{size: 64 << 10}, codecBetter},
		scheme{framed, codecNone}, scheme{framed, codecS2}, scheme{framed, codecBetter}, scheme{framed, codecDefault})
}

// speed is in bytes of images: for each second with two goroutines, and for each second of
// processor time, which others on the machine disturb less.
type speed struct{ wall, cpu float64 }

// timed are the images whose storing is timed: a sixteenth of the first, the second and the last
// checkpoint of each program.
func timed(ins []*input) (some []*input) {
	for _, in := range ins {
		if slices.ContainsFunc([]string{"-a1", "-a2", "-a5"}, func(s string) bool { return strings.HasSuffix(in.name, s) }) {
			some = append(some, in.part(16))
		}
	}
	return some
}

// speeds measures all schemes runs times, one after the other, so that what disturbs the
// machine for a while disturbs all of them, and prints medians.
func speeds(ctx context.Context, ins []*input, only []string, runs int, w, say io.Writer) error {
	ins = timed(ins)
	all := slices.DeleteFunc(schemes(), func(s scheme) bool { return !chosen(only, s.name()) })
	ingest, read := make([][]speed, len(all)), make([][]speed, len(all))
	for range runs {
		for i := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			in, out, err := all[i].speed(ins)
			if err != nil {
				return fmt.Errorf("%s: %w", all[i].name(), err)
			}
			ingest[i], read[i] = append(ingest[i], in), append(read[i], out)
			printSpeed(say, &all[i], in, out)
		}
	}
	printSpeedsHead(w, runs)
	for i := range all {
		printSpeed(w, &all[i], median(ingest[i]), median(read[i]))
	}
	return nil
}

// speed stores images and reads the last one of each program.
func (c *scheme) speed(ins []*input) (ingest, read speed, err error) {
	_, logical := c.count(ins)
	s, err := newMemstore(c.cutting, ins, 0, c.codec)
	if err != nil {
		return ingest, read, err
	}
	defer s.release()
	runtime.GC()
	var images [][]chunkRef
	w := startWatch()
	for _, in := range ins {
		images = append(images, s.ingest(in))
	}
	ingest = w.stop(logical)
	logical = 0
	w = startWatch()
	for i, in := range ins {
		if !strings.HasSuffix(in.name, "-a5") {
			continue
		}
		if err := s.read(images[i]); err != nil {
			return ingest, read, fmt.Errorf("%s: %w", in.name, err)
		}
		logical += int64(len(in.data))
	}
	return ingest, w.stop(logical), nil
}

func median(all []speed) speed {
	by := func(f func(s speed) float64) float64 {
		var v []float64
		for _, s := range all {
			v = append(v, f(s))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return speed{by(func(s speed) float64 { return s.wall }), by(func(s speed) float64 { return s.cpu })}
}

// watch measures time.
type watch struct {
	wall time.Time
	cpu  time.Duration
}

func startWatch() watch { return watch{time.Now(), cpuTime()} }

func (w watch) stop(n int64) speed {
	return speed{float64(n) / time.Since(w.wall).Seconds(), float64(n) / (cpuTime() - w.cpu).Seconds()}
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it fails only for wrong arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
