// Package retain says which images may go for their age, and why.
package retain

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/store/record"
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

// TooOld tells for each image, given newest first, why it goes for its age; "" if it stays.
func (p *Policy) TooOld(host string, all []*record.Record, now time.Time) []string {
	why := make([]string, len(all))
	newest := map[string]time.Time{} // of each series
	count := map[string]int{}
	for i, rec := range all {
		if !p.Ours(host, rec) {
			continue
		}
		series, created := rec.SeriesKey(), time.Unix(0, rec.Created)
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
func (p *Policy) reason(rec *record.Record, over bool) string {
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

// Ours reports whether an image may go at all as far as its host is concerned.
func (p *Policy) Ours(host string, rec *record.Record) bool {
	return p.AllHosts || rec.Host == "" || rec.Host == host
}
