package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// parsePID reads a process id from the command line.
func parsePID(s string) (int, error) {
	pid, err := strconv.Atoi(s)
	if err != nil || pid <= 0 {
		return 0, usagef("%q is no process id: a positive number is wanted, as ps shows it", s)
	}
	return pid, nil
}

// comm is the name of a process, or "process" if it cannot be read.
func comm(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "process"
	}
	return strings.TrimSuffix(string(b), "\n")
}

// imageName is how a dump without -o calls its file: COMM-PID-UTCTIME.ckpt, with only
// characters that need no quoting.
func imageName(comm string, pid int, t time.Time) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '+':
			return r
		}
		return '-'
	}, comm)
	return fmt.Sprintf("%s-%d-%s.ckpt", strings.TrimLeft(clean, ".-"), pid, t.UTC().Format("20060102T150405Z"))
}
