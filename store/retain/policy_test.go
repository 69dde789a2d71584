package retain

import (
	"slices"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/record"
)

// TestTooOld: who goes for its age, and what is said of it.
func TestTooOld(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	image := func(name, series, host string, age time.Duration, kept bool) *record.Record {
		return &record.Record{Name: name, Series: series, Host: host, Created: now.Add(-age).UnixNano(), Kept: kept}
	}
	all := []*record.Record{ // newest first
		image("a3", "a", "here", time.Minute, false),
		image("other", "a", "there", time.Minute, false),
		image("a2", "a", "here", time.Hour, false),
		image("kept", "a", "here", 2*time.Hour, true),
		image("a1", "a", "here", 3*time.Hour, false),
		image("b1", "b", "here", 50*time.Hour, false),
	}
	for _, c := range []struct {
		name   string
		policy Policy
		want   []string
	}{
		{"last", Policy{KeepLast: 1}, []string{"", "", "not among the newest 1 of a", "", "not among the newest 1 of a", ""}},
		{"all hosts", Policy{KeepLast: 1, AllHosts: true}, []string{"", "", "not among the newest 1 of a", "", "not among the newest 1 of a", ""}},
		{"last or young", Policy{KeepLast: 1, KeepWithin: 2 * time.Hour}, []string{"", "", "", "", "not among the newest 1 of a, older than 2h", ""}},
		{"expired", Policy{KeepLast: 9, Expire: 24 * time.Hour}, []string{"", "", "", "", "", "nothing new of b for 24h"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.policy.TooOld("here", all, now); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	if p := (Policy{}); p.Ours("here", all[1]) || !p.Ours("here", all[0]) || !(&Policy{AllHosts: true}).Ours("here", all[1]) {
		t.Error("which images are ours is wrong")
	}
}
