package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Policy says what Prune removes. An image goes if KeepLast and KeepWithin are both asked
// and none of them keeps it, or if it is among the oldest and the store is too large. With
// neither of the two nothing goes for its age. Images that were renamed always stay.
type Policy struct {
	// KeepLast keeps the newest so many of every series; 0: there is no such rule. An image
	// that was given no series is the only one of its own.
	KeepLast int
	// Expire ends KeepLast for a series that got no image for so long; 0: never. Without it
	// one image a minute, each of another series, would be kept for ever.
	Expire time.Duration
	// KeepWithin keeps what is younger; 0: there is no such rule.
	KeepWithin time.Duration
	// MaxSize is how many bytes in packs the images may need; the oldest go until they need
	// no more, but never the newest of all. 0: there is no bound. Packs take up to a third
	// more, since GC leaves packs of which little is dead.
	MaxSize int64
	// AllHosts lets images go that another host took. Else they are left to it.
	AllHosts bool
	// Spare, if not nil, is asked before an image goes, and keeps it this time.
	Spare func(name string) bool
}

// Pruned is an image that Prune removed.
type Pruned struct {
	Image
	Why string // which rules did not keep it
}

// PruneReport tells what a Prune did.
type PruneReport struct {
	Removed []Pruned
	Over    int64 // bytes that images need beyond MaxSize although no more of them may go
}

// Ratio returns how many bytes a reader sees for one that the image brought into the store;
// 0 if it brought none.
func (im *Image) Ratio() float64 {
	if im.Unique == 0 {
		return 0
	}
	return float64(im.Size) / float64(im.Unique)
}

// SetSeries says what the image is one of many of, for Policy.KeepLast. It must be called
// before Commit by who calls Commit.
func (in *Ingest) SetSeries(name string) { in.series = label(name) }

// label makes s fit for a record.
func label(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return strings.ToValidUTF8(s[:min(len(s), maxLabel)], "")
}

// Prune removes images by the rules of p. Their space is freed by the next GC, and who has
// one of them open reads on. When it fails, what it reports is gone and the rest is not.
func (s *Store) Prune(ctx context.Context, p Policy) (PruneReport, error) {
	rep, err := s.prune(ctx, p, time.Now())
	if err != nil {
		err = fmt.Errorf("prune: %w", err)
	}
	return rep, err
}

func (s *Store) prune(ctx context.Context, p Policy, now time.Time) (rep PruneReport, err error) {
	if err := s.lookAround(bootTime()); err != nil {
		return rep, err
	}
	if p.KeepLast > 0 || p.KeepWithin > 0 {
		all, err := s.everyImage()
		if err != nil {
			return rep, err
		}
		for i, why := range p.tooOld(s.o.Host, all, now) {
			if why == "" {
				continue
			}
			if err := s.pruneOne(ctx, &p, all[i], why, &rep); err != nil {
				return rep, err
			}
		}
	}
	if p.MaxSize > 0 {
		err = s.pruneSize(ctx, &p, &rep)
	}
	return rep, err
}

// everyImage lists all images, the newest first.
func (s *Store) everyImage() ([]*imageRec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	all := make([]*imageRec, 0, len(s.images))
	for _, im := range s.images {
		all = append(all, im)
	}
	slices.SortFunc(all, func(a, b *imageRec) int {
		return cmp.Or(cmp.Compare(b.rec.Created, a.rec.Created), cmp.Compare(b.rec.Name, a.rec.Name))
	})
	return all, nil
}

// pruneOne removes an image, unless it is not any more what it was when that was decided.
func (s *Store) pruneOne(ctx context.Context, p *Policy, im *imageRec, why string, rep *PruneReport) error {
	if p.Spare != nil && p.Spare(im.rec.Name) {
		return ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if gone, err := s.removeSame(ctx, im); !gone || err != nil {
		return err
	}
	rep.Removed = append(rep.Removed, Pruned{im.rec.image(), why})
	return nil
}

// removeSame removes an image if it is still listed, and under the same name.
func (s *Store) removeSame(ctx context.Context, im *imageRec) (bool, error) {
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return false, ErrClosed
	case s.images[im.rec.Name] != im:
		s.mu.Unlock()
		return false, nil
	case s.sh != nil: // not with the lock held: a bucket takes its time
		s.mu.Unlock()
		return true, s.forgetShared(ctx, im)
	}
	defer s.mu.Unlock()
	return true, s.remove(im)
}

// tooOld tells for each image, given newest first, why it goes for its age; "" if it stays.
func (p *Policy) tooOld(host string, all []*imageRec, now time.Time) []string {
	why := make([]string, len(all))
	newest := map[string]time.Time{} // of each series
	count := map[string]int{}
	for i, im := range all {
		rec := im.rec
		if !p.ours(host, rec) {
			continue
		}
		series, created := rec.seriesKey(), time.Unix(0, rec.Created)
		if newest[series].IsZero() {
			newest[series] = created
		}
		if rec.Kept {
			continue
		}
		count[series]++
		over := p.Expire > 0 && now.Sub(newest[series]) >= p.Expire
		last := p.KeepLast > 0 && !over && count[series] <= p.KeepLast
		young := p.KeepWithin > 0 && now.Sub(created) < p.KeepWithin
		if !last && !young {
			why[i] = p.reason(rec, over)
		}
	}
	return why
}

// reason says why none of the rules keeps an image.
func (p *Policy) reason(rec *record, over bool) string {
	name := cmp.Or(rec.Series, rec.Name)
	var not []string
	switch {
	case p.KeepLast > 0 && over:
		not = append(not, fmt.Sprintf("nothing new of %s for %s", name, hours(p.Expire)))
	case p.KeepLast > 0:
		not = append(not, fmt.Sprintf("not among the newest %d of %s", p.KeepLast, name))
	}
	if p.KeepWithin > 0 {
		not = append(not, "older than "+hours(p.KeepWithin))
	}
	return strings.Join(not, ", ")
}

// hours is d without the minutes and seconds that are none.
func hours(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ours reports whether an image may go at all as far as its host is concerned.
func (p *Policy) ours(host string, rec *record) bool {
	return p.AllHosts || rec.Host == "" || rec.Host == host
}

// seriesKey tells series apart. No series has the name of an image without one.
func (r *record) seriesKey() string {
	if r.Series == "" {
		return "\x00" + r.Name
	}
	return r.Host + "\x00" + r.Series
}
