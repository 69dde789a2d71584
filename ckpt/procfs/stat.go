package procfs

import (
	"bytes"
	"math"
)

// Stat is /proc/PID/stat or /proc/PID/task/TID/stat. Addresses read as 0 or 1 where the
// reader may not ptrace the process.
type Stat struct {
	PID                   int
	Comm                  string // as it is: may hold spaces, parentheses and newlines
	State                 byte   // R, S, D, Z, T, t, I …
	PPID, PGID, SID       int
	TTY, TPGID            int    // TTY as the kernel encodes it for user space, 0: none
	Flags                 uint32 // PF_*
	UTime, STime          uint64 // clock ticks
	Priority, Nice        int
	NumThreads            int
	StartTime             uint64 // clock ticks after boot
	RSS                   int64  // pages
	StartCode, EndCode    uint64
	StartStack            uint64
	ExitSignal, Processor int
	RTPriority, Policy    uint32
	StartData, EndData    uint64
	StartBrk              uint64
	ArgStart, ArgEnd      uint64
	EnvStart, EnvEnd      uint64
	ExitCode              int // raw wait status
}

// statFields is how many fields there are after the name: 3 (state) to 52 (exit_code).
const statFields = 50

// ParseStat parses /proc/PID/stat. The name ends at the last ')', since it may hold any.
func ParseStat(b []byte) (Stat, error) {
	var s Stat
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open || end+2 > len(b) {
		return s, textError("stat", "name", b)
	}
	pid, ok := smallInt(b[:open-1])
	if !ok || b[open-1] != ' ' {
		return s, textError("stat", "pid", b)
	}
	s.PID, s.Comm = pid, string(b[open+1:end])

	var f [statFields][]byte
	rest := bytes.TrimRight(b[end+1:], "\n")
	for i := range f {
		if f[i], rest = nextWord(rest); len(f[i]) == 0 {
			return s, textError("stat", "field after the last one", b[end:])
		}
	}
	if len(f[0]) != 1 {
		return s, textError("stat", "state", f[0])
	}
	s.State = f[0][0]
	p := statParser{fields: &f}
	s.fill(&p)
	if p.bad != 0 {
		return s, textError("stat", "number", f[p.bad-3])
	}
	return s, nil
}

// fill takes every field by its number in proc(5).
func (s *Stat) fill(p *statParser) {
	s.PPID, s.PGID, s.SID = p.int(4), p.int(5), p.int(6)
	s.TTY, s.TPGID = p.int(7), p.int(8)
	s.Flags = p.uint32(9)
	s.UTime, s.STime = p.uint64(14), p.uint64(15)
	s.Priority, s.Nice = p.int(18), p.int(19)
	s.NumThreads = p.int(20)
	s.StartTime = p.uint64(22)
	s.RSS = p.int64(24)
	s.StartCode, s.EndCode, s.StartStack = p.uint64(26), p.uint64(27), p.uint64(28)
	s.ExitSignal, s.Processor = p.int(38), p.int(39)
	s.RTPriority, s.Policy = p.uint32(40), p.uint32(41)
	s.StartData, s.EndData, s.StartBrk = p.uint64(45), p.uint64(46), p.uint64(47)
	s.ArgStart, s.ArgEnd = p.uint64(48), p.uint64(49)
	s.EnvStart, s.EnvEnd = p.uint64(50), p.uint64(51)
	s.ExitCode = p.int(52)
}

// statParser reads numbered fields and remembers the number of one that was no number.
type statParser struct {
	fields *[statFields][]byte
	bad    int
}

func (p *statParser) int64(n int) int64 {
	v, ok := integer(p.fields[n-3])
	if !ok {
		p.bad = n
	}
	return v
}

func (p *statParser) int(n int) int {
	v, ok := smallInt(p.fields[n-3])
	if !ok {
		p.bad = n
	}
	return v
}

func (p *statParser) uint64(n int) uint64 {
	v, ok := whole(p.fields[n-3], 10)
	if !ok {
		p.bad = n
	}
	return v
}

func (p *statParser) uint32(n int) uint32 {
	v := p.uint64(n)
	if v > math.MaxUint32 {
		p.bad = n
	}
	return uint32(v)
}
