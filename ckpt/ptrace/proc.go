package ptrace

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/quickread"
)

// The little that this package must know from /proc by itself. The full parsers are in
// package procfs, which this package does not import.

// statusField returns one field of /proc/PID/status.
func statusField(pid int, name string) (string, error) {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", nil
}

// comm returns the name of a process, "?" if it is gone.
func comm(pid int) string {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// stat is the part of /proc/PID/stat that is used here.
type stat struct {
	comm       string
	state      byte
	exitSignal int
	exitCode   int // wait status; 0 if we may not see it
}

// readStat reads /proc/PID/stat of a process or thread.
func readStat(pid int) (stat, error) {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')') // the name may hold both
	if open < 0 || end < open {
		return stat{}, fmt.Errorf("/proc/%d/stat: no name in it", pid)
	}
	f := strings.Fields(string(b[end+1:])) // f[0] is field 3
	if len(f) < 50 || len(f[0]) == 0 {
		return stat{}, fmt.Errorf("/proc/%d/stat: %d fields, want 52", pid, len(f)+2)
	}
	st := stat{comm: string(b[open+1 : end]), state: f[0][0]}
	st.exitSignal, _ = strconv.Atoi(f[35]) // unparsable stays 0 and cannot be: the kernel prints numbers
	st.exitCode, _ = strconv.Atoi(f[49])
	return st, nil
}

// children returns the child processes of one thread.
func children(pid, tid int) []int {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/task/%d/children", pid, tid))
	if err != nil {
		return nil // the thread is gone, and its children are another's
	}
	var out []int
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func hasChildren(tid int) bool { return len(children(tid, tid)) > 0 }

// tasks returns the thread ids of a process.
func tasks(pid int) ([]int, error) { return quickread.Numbers(fmt.Sprintf("/proc/%d/task", pid)) }

// vma is one line of /proc/PID/maps.
type vma struct {
	start, end uint64
	perms      string
	file       string // "dev inode": tells one mapped object from another
	path       string
}

// readMaps parses /proc/PID/maps.
func readMaps(pid int) ([]vma, error) {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	return parseMaps(pid, b)
}

func parseMaps(pid int, b []byte) ([]vma, error) {
	var out []vma
	for line := range strings.Lines(string(b)) {
		v, ok := parseVMA(strings.TrimSuffix(line, "\n"))
		if !ok {
			return nil, fmt.Errorf("/proc/%d/maps: cannot read the line %q", pid, line)
		}
		out = append(out, v)
	}
	return out, nil
}

// parseVMA parses "start-end perms offset dev inode   path".
func parseVMA(line string) (v vma, ok bool) {
	span, rest, _ := strings.Cut(line, " ")
	a, b, ok := strings.Cut(span, "-")
	if !ok {
		return v, false
	}
	var e1, e2 error
	v.start, e1 = strconv.ParseUint(a, 16, 64)
	v.end, e2 = strconv.ParseUint(b, 16, 64)
	v.perms, rest, _ = strings.Cut(rest, " ")
	_, rest, _ = strings.Cut(rest, " ") // offset
	dev, rest, _ := strings.Cut(rest, " ")
	ino, rest, _ := strings.Cut(rest, " ")
	v.file = dev + " " + ino
	v.path = strings.TrimLeft(rest, " ")
	return v, e1 == nil && e2 == nil && len(v.perms) == 4
}
