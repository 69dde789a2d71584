package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// bytesFlag is a number of bytes on the command line: 500MB, 20GiB, 1.5T.
type bytesFlag int64

// units are the powers of 1024 and, with B alone behind them, of 1000.
const units = "KMGTP"

func (b *bytesFlag) Set(s string) error {
	num := strings.TrimRightFunc(s, func(r rune) bool { return r == ' ' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' })
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return errors.New("want a size such as 500MB or 20GiB")
	}
	unit := strings.ToUpper(strings.TrimSpace(s[len(num):]))
	step := 1024.0
	switch {
	case len(unit) == 3 && unit[1:] == "IB":
		unit = unit[:1]
	case len(unit) == 2 && unit[1] == 'B':
		unit, step = unit[:1], 1000
	case unit == "B":
		unit = ""
	}
	n := strings.Index(units, unit)
	if len(unit) > 1 || n < 0 {
		return fmt.Errorf("%q is no unit of size; take for example MB, GiB or T", s[len(num):])
	}
	if unit != "" {
		v *= math.Pow(step, float64(n+1))
	}
	if v >= math.MaxInt64 {
		return errors.New("that is too large")
	}
	*b = bytesFlag(v)
	return nil
}

func (b *bytesFlag) Type() string { return "SIZE" }

// String is also what a server in the background gets, so it is exact.
func (b *bytesFlag) String() string {
	for i := len(units) - 1; i >= 0; i-- {
		if one := bytesFlag(1) << (10 * (i + 1)); *b > 0 && *b%one == 0 {
			return fmt.Sprintf("%d%ciB", *b/one, units[i])
		}
	}
	return strconv.FormatInt(int64(*b), 10)
}

// limitFlag is an optional size, or a percentage of something that is not known yet.
type limitFlag struct {
	set     bool
	percent int // 0: bytes says it
	bytes   bytesFlag
}

func (l *limitFlag) Set(s string) error {
	num, ok := strings.CutSuffix(s, "%")
	if !ok {
		l.set, l.percent = true, 0
		return l.bytes.Set(s)
	}
	p, err := strconv.Atoi(strings.TrimSpace(num))
	if err != nil || p < 1 || p > 100 {
		return errors.New("want 1% to 100%")
	}
	*l = limitFlag{set: true, percent: p}
	return nil
}

func (l *limitFlag) Type() string { return "SIZE" }

func (l *limitFlag) String() string {
	switch {
	case !l.set:
		return ""
	case l.percent > 0:
		return strconv.Itoa(l.percent) + "%"
	}
	return l.bytes.String()
}

// periodFlag is a time on the command line that may be days and weeks: 90m, 24h, 30d, 2w.
type periodFlag time.Duration

const day = 24 * time.Hour

func (p *periodFlag) Set(s string) error {
	for _, u := range []struct {
		name string
		len  time.Duration
	}{{"d", day}, {"w", 7 * day}} {
		num, ok := strings.CutSuffix(s, u.name)
		if n, err := strconv.ParseUint(num, 10, 16); ok && err == nil {
			*p = periodFlag(time.Duration(n) * u.len)
			return nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return errors.New("want a time such as 90m, 24h or 30d")
	}
	*p = periodFlag(d)
	return nil
}

func (p *periodFlag) Type() string { return "TIME" }

func (p *periodFlag) String() string {
	d := time.Duration(*p)
	switch {
	case d == 0:
		return "0" // what pflag knows as no default
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}
