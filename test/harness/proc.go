package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long anything may take before a test gives up. It is no assertion about
// speed: a loaded machine only has to be faster than this.
const patience = 60 * time.Second

// until polls cond until it holds, and tells whether it came to hold.
func until(cond func() bool) bool {
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// pids lists all processes.
func pids() []int {
	dir, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, e := range dir {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// marked lists the processes whose environment holds the marker of a test; "" means of any
// test of this run. Zombies have no environment and are not listed.
func marked(id string) []int {
	want := []byte(marker + "=" + run.base + "/" + id)
	var found []int
	for _, p := range pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p))
		if err != nil {
			continue
		}
		for v := range bytes.SplitSeq(b, []byte{0}) {
			if bytes.Equal(v, want) || id == "" && bytes.HasPrefix(v, want) {
				found = append(found, p)
				break
			}
		}
	}
	return found
}

// running lists the processes that run the executable.
func running(exe string) []int {
	var found []int
	for _, p := range pids() {
		if l, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p)); err == nil && strings.TrimSuffix(l, " (deleted)") == exe {
			found = append(found, p)
		}
	}
	return found
}

func commandOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

// statOf returns the fields of /proc/PID/stat from the state (field 3) on, or nil.
func statOf(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, ok := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(" "))
	if !ok {
		return nil
	}
	return strings.Fields(string(rest))
}

// State returns the state letter of a process, 0 if there is none.
func State(pid int) byte {
	if f := statOf(pid); len(f) > 0 {
		return f[0][0]
	}
	return 0
}

// Exists tells whether the pid is in use, by a zombie too.
func Exists(pid int) bool {
	return unix.Kill(pid, 0) != unix.ESRCH
}

// descendants lists a process and all below it, parents first, zombies included.
func descendants(root int) []int {
	kids := map[int][]int{}
	for _, p := range pids() {
		if f := statOf(p); len(f) > 1 {
			pp, _ := strconv.Atoi(f[1])
			kids[pp] = append(kids[pp], p)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, kids[all[i]]...)
	}
	return all
}

// killAll kills processes until none of them is left, not even as a zombie.
func killAll(list func() []int) error {
	var last []int
	if !until(func() bool {
		last = slices.DeleteFunc(list(), func(p int) bool { return !Exists(p) })
		for _, p := range last {
			unix.Kill(p, unix.SIGKILL)
		}
		return len(last) == 0
	}) {
		return fmt.Errorf("pids %v do not end", last)
	}
	return nil
}

// mountsBelow lists the mount points at or below a folder, the deepest first.
func mountsBelow(dir string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			found = append(found, f[4])
		}
	}
	slices.Reverse(found)
	return found
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func join(dir string, name ...string) string {
	return filepath.Join(append([]string{dir}, name...)...)
}

// Stubs counts the processes that a restore has made to work in and has not ended: those without a
// parent, which came to us.
func Stubs() int {
	n := 0
	for _, p := range descendants(os.Getpid()) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if err == nil && bytes.HasPrefix(b, []byte("ckptfs-restore")) {
			n++
		}
	}
	return n
}
