package main

import (
	"testing"
	"time"
)

func TestBytesFlag(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "20GiB": 20 << 30, "20gib": 20 << 30, "20G": 20 << 30, "500MB": 500e6, "1.5 TiB": 3 << 39, "1kB": 1000, "7B": 7, "2P": 2 << 50,
	} {
		var b, again bytesFlag
		if err := b.Set(in); err != nil || int64(b) != want {
			t.Errorf("%q: %d, %v; want %d", in, b, err, want)
		}
		if err := again.Set(b.String()); err != nil || again != b {
			t.Errorf("%q says %q, which is %d, %v", in, b.String(), again, err)
		}
	}
	for _, bad := range []string{"", "x", "GiB", "-1", "1 parsec", "1iB", "1BB", "NaN", "Inf", "1e30", "9999999P", "10%", "1GG"} {
		if b := bytesFlag(0); b.Set(bad) == nil {
			t.Errorf("%q is taken for %d", bad, b)
		}
	}
}

func TestLimitFlag(t *testing.T) {
	var l limitFlag
	if l.String() != "" || l.set {
		t.Errorf("%+v is not unset", l)
	}
	for in, want := range map[string]limitFlag{"10%": {true, 10, 0}, "100 %": {true, 100, 0}, "1K": {true, 0, 1024}, "0": {true, 0, 0}} {
		var l, again limitFlag
		if err := l.Set(in); err != nil || l != want {
			t.Errorf("%q: %+v, %v", in, l, err)
		}
		if err := again.Set(l.String()); err != nil || again != l {
			t.Errorf("%q says %q, which is %+v, %v", in, l.String(), again, err)
		}
	}
	for _, bad := range []string{"", "0%", "101%", "x%", "1.5%", "%"} {
		if l := (limitFlag{}); l.Set(bad) == nil {
			t.Errorf("%q is taken for %+v", bad, l)
		}
	}
}

func TestPeriodFlag(t *testing.T) {
	for in, want := range map[string]time.Duration{"0": 0, "90m": 90 * time.Minute, "24h": day, "30d": 30 * day, "2w": 14 * day, "1h30m": 90 * time.Minute} {
		var p, again periodFlag
		if err := p.Set(in); err != nil || time.Duration(p) != want {
			t.Errorf("%q: %v, %v", in, time.Duration(p), err)
		}
		if err := again.Set(p.String()); err != nil || again != p {
			t.Errorf("%q says %q, which is %v, %v", in, p.String(), time.Duration(again), err)
		}
	}
	for _, bad := range []string{"", "1", "-1h", "d", "-1d", "1.5d", "99999999d", "x"} {
		if p := periodFlag(0); p.Set(bad) == nil {
			t.Errorf("%q is taken for %v", bad, time.Duration(p))
		}
	}
}
