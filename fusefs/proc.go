package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// process is the little this package asks of /proc about a process or thread.
type process struct {
	pid, tgid int
	comm      string
	ppid      int
	flags     uint64 // PF_* of linux/sched.h
	start     uint64 // clock ticks after boot: with pid the identity of a process
	rss       int64  // pages
	uid, gid  uint32 // effective
	tracer    int
	pending   uint64 // signals that wait for it, neither blocked nor ignored
}

// Flags of linux/sched.h that /proc/PID/stat shows.
const (
	pfExiting  = 0x00000004
	pfSignaled = 0x00000400
	pfKthread  = 0x00200000
)

// readProcess reads /proc/ID/stat and status; id may be a thread.
func readProcess(id int) (*process, error) {
	dir := "/proc/" + strconv.Itoa(id)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, noProcess(id, err)
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, noProcess(id, err)
	}
	p := &process{pid: id}
	if err := p.parseStat(stat); err != nil {
		return nil, err
	}
	p.parseStatus(status)
	return p, nil
}

func noProcess(id int, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return failf(syscall.ESRCH, "there is no process %d", id)
	}
	return err
}

// parseStat reads proc_pid_stat(5). The name may hold blanks and parentheses, so it ends at
// the last one.
func (p *process) parseStat(b []byte) error {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return fmt.Errorf("/proc/%d/stat has no name: %q", p.pid, b)
	}
	p.comm = string(b[open+1 : end])
	f := strings.Fields(string(b[end+1:])) // f[0] is field 3
	if len(f) < 22 {
		return fmt.Errorf("/proc/%d/stat is short: %q", p.pid, b)
	}
	var errs [4]error
	p.ppid, errs[0] = strconv.Atoi(f[1])
	p.flags, errs[1] = strconv.ParseUint(f[6], 10, 64)
	p.start, errs[2] = strconv.ParseUint(f[19], 10, 64)
	p.rss, errs[3] = strconv.ParseInt(f[21], 10, 64)
	return errors.Join(errs[:]...)
}

// parseStatus reads the lines of proc_pid_status(5) that are wanted here; what is missing
// stays 0.
func (p *process) parseStatus(b []byte) {
	var pending, blocked, ignored uint64
	hex := func(s string) uint64 { v, _ := strconv.ParseUint(s, 16, 64); return v }
	for line := range strings.Lines(string(b)) {
		key, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if len(f) == 0 {
			continue
		}
		switch key {
		case "Tgid":
			p.tgid, _ = strconv.Atoi(f[0])
		case "TracerPid":
			p.tracer, _ = strconv.Atoi(f[0])
		case "Uid":
			p.uid = second(f)
		case "Gid":
			p.gid = second(f)
		case "SigPnd", "ShdPnd":
			pending |= hex(f[0])
		case "SigBlk":
			blocked = hex(f[0])
		case "SigIgn":
			ignored = hex(f[0])
		}
	}
	p.pending = pending &^ blocked &^ ignored
}

// second is the effective one of the four ids of a line.
func second(f []string) uint32 {
	if len(f) < 2 {
		return 0
	}
	v, _ := strconv.ParseUint(f[1], 10, 32)
	return uint32(v)
}

// quiet are the signals that do not end a wait: by default they are ignored or stop the
// process, and runtimes send them to themselves all the time.
const quiet = 1<<(syscall.SIGCHLD-1) | 1<<(syscall.SIGURG-1) | 1<<(syscall.SIGWINCH-1) | 1<<(syscall.SIGCONT-1) |
	1<<(syscall.SIGPROF-1) | 1<<(syscall.SIGVTALRM-1) | 1<<(syscall.SIGSTOP-1) | 1<<(syscall.SIGTSTP-1) |
	1<<(syscall.SIGTTIN-1) | 1<<(syscall.SIGTTOU-1)

// wantsOut reports whether a signal waits for the thread that should end what it waits for.
func (p *process) wantsOut() bool { return p.pending&^quiet != 0 }

// tracedByUs reports whether a thread of this process traces it. What /proc calls TracerPid
// is the thread.
func (p *process) tracedByUs() bool {
	if p.tracer == 0 {
		return false
	}
	t, err := readProcess(p.tracer)
	return err == nil && t.tgid == os.Getpid()
}

// listProcesses returns the ids of all user processes, in no order.
func listProcesses() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		p := process{pid: pid}
		b, err := os.ReadFile("/proc/" + n + "/stat")
		if err == nil && p.parseStat(b) == nil && p.flags&pfKthread == 0 {
			out = append(out, pid)
		}
	}
	return out, nil
}
