package harness

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Outside is a tree as /proc shows it, as text that can be compared before and after. What
// no restore can or should keep is left out: times, counters, inode numbers of pipes.
type Outside map[string]string

// Look takes down the tree from outside. The program has to be at rest.
func (p *Program) Look() Outside {
	p.t.Helper()
	o := Outside{}
	tree := p.Tree()
	names := anonymous{}
	for _, pid := range tree {
		o.process(pid, pid == p.PID, names)
	}
	o["tree"] = fmt.Sprint(slices.Sorted(slices.Values(tree)))
	return o
}

// Same fails the test unless the tree comes to look as it did before. A thread that was let go has
// to come back into its system call first, which a busy machine delays.
func (p *Program) Same(before Outside, when string) {
	p.t.Helper()
	now := p.Look()
	until(func() bool {
		if maps.Equal(before, now) {
			return true
		}
		now = p.Look()
		return false
	})
	before.diff(p.t, now, when)
}

// diff fails the test for every line in which two looks differ.
func (o Outside) diff(t testing.TB, now Outside, when string) {
	t.Helper()
	keys := maps.Clone(o)
	maps.Copy(keys, now)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if o[k] == now[k] {
			continue
		}
		was, is := strings.Split(o[k], "\n"), strings.Split(now[k], "\n")
		var b strings.Builder
		for _, l := range was {
			if !slices.Contains(is, l) {
				fmt.Fprintf(&b, "\n\twas %s", l)
			}
		}
		for _, l := range is {
			if !slices.Contains(was, l) {
				fmt.Fprintf(&b, "\n\tis  %s", l)
			}
		}
		t.Errorf("%s: /proc/%s differs:%s", when, k, b.String())
	}
}

// anonymous gives pipes and the like numbers in the order in which they are met, so that
// sharing can be compared while inode numbers differ.
type anonymous map[string]int

var anonLink = regexp.MustCompile(`^(pipe|socket):\[\d+\]$`)

func (a anonymous) name(link string) string {
	if !anonLink.MatchString(link) {
		return link
	}
	n, ok := a[link]
	if !ok {
		n = len(a)
		a[link] = n
	}
	return fmt.Sprintf("%s #%d", link[:strings.IndexByte(link, ':')], n)
}

func (o Outside) process(pid int, root bool, names anonymous) {
	dir := fmt.Sprintf("/proc/%d", pid)
	key := func(s string) string { return fmt.Sprintf("%d/%s", pid, s) }
	stat := statOf(pid)
	if len(stat) < 50 {
		return
	}
	o[key("stat")] = statLines(stat, root)
	if stat[0] == "Z" {
		return
	}
	for _, l := range []string{"cwd", "root", "exe"} {
		link, _ := os.Readlink(join(dir, l))
		o[key(l)] = shownName(link)
	}
	for _, f := range []string{"cmdline", "environ", "auxv", "limits", "oom_score_adj", "coredump_filter", "personality", "timers", "cgroup"} {
		b, _ := os.ReadFile(join(dir, f))
		o[key(f)] = strings.ReplaceAll(string(b), "\x00", "\n")
	}
	smaps, _ := os.ReadFile(join(dir, "smaps"))
	o[key("maps")] = mapLines(string(smaps))
	fds, _ := os.ReadDir(join(dir, "fd"))
	for _, e := range fds {
		link, _ := os.Readlink(join(dir, "fd", e.Name()))
		info, _ := os.ReadFile(join(dir, "fdinfo", e.Name()))
		o[key("fd/"+e.Name())] = names.name(shownName(link)) + "\n" + infoLines(string(info), link)
	}
	tasks, _ := filepath.Glob(join(dir, "task", "*"))
	for _, d := range tasks {
		tid := filepath.Base(d)
		status, _ := os.ReadFile(join(d, "status"))
		o[key("task/"+tid+"/status")] = statusLines(string(status))
		slack, _ := os.ReadFile(join("/proc", tid, "timerslack_ns"))
		o[key("task/"+tid+"/timerslack_ns")] = string(slack)
	}
}

// statLines picks the fields of stat that have to stay; field 3 is the first.
func statLines(f []string, root bool) string {
	var b strings.Builder
	add := func(name string, n int) { fmt.Fprintf(&b, "%s %s\n", name, f[n-3]) }
	if strings.Contains("TZ", f[0]) {
		add("state", 3)
	}
	if !root {
		add("parent", 4)
		add("exit_signal", 38)
	}
	for n, name := range map[int]string{5: "group", 6: "session", 7: "tty"} {
		add(name, n)
	}
	if f[0] == "Z" {
		add("exit_code", 52)
		return sorted(b.String())
	}
	for n, name := range map[int]string{18: "priority", 19: "nice", 20: "threads", 40: "rt_priority", 41: "policy",
		26: "startcode", 27: "endcode", 28: "startstack", 45: "start_data", 46: "end_data", 47: "start_brk",
		48: "arg_start", 49: "arg_end", 50: "env_start", 51: "env_end"} {
		add(name, n)
	}
	return sorted(b.String())
}

var statusKeep = regexp.MustCompile(`^(Name|Umask|Tgid|NStgid|NSpid|Uid|Gid|Groups|VmLck|Threads|SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt|` +
	`CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Speculation_Store_Bypass|SpeculationIndirectBranch|THP_enabled|Cpus_allowed):`)

func statusLines(s string) string {
	var keep []string
	for _, l := range strings.Split(s, "\n") {
		if statusKeep.MatchString(l) {
			keep = append(keep, l)
		}
	}
	return strings.Join(keep, "\n")
}

var infoDrop = regexp.MustCompile(`^(mnt_id|eventfd-id|ino):`)
var infoLock = regexp.MustCompile(`^lock:\t\d+: (.* -?\d+ )([0-9a-f]+:[0-9a-f]+:\d+) `)
var infoTarget = regexp.MustCompile(` ino:\S+ sdev:\S+$`)

// infoLines keeps what fdinfo says about the file itself.
func infoLines(s, link string) string {
	var keep []string
	fresh := !strings.HasPrefix(link, "/") || strings.HasPrefix(link, "/memfd:") || strings.HasSuffix(link, " (deleted)")
	for _, l := range strings.Split(s, "\n") {
		if infoDrop.MatchString(l) && (l[0] != 'i' || fresh) {
			continue
		}
		if m := infoLock.FindStringSubmatch(l); m != nil { // their order says nothing
			if fresh {
				m[2] = "-"
			}
			l = "lock: " + m[1] + m[2] + " " + l[len(m[0]):]
		}
		keep = append(keep, infoTarget.ReplaceAllString(l, ""))
	}
	slices.Sort(keep)
	return strings.Join(keep, "\n")
}

// vma is one entry of smaps.
type vma struct {
	start, end, off      uint64
	perms, dev, ino      string
	path, flags, pageSiz string
}

var vmaHead = regexp.MustCompile(`^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$`)

// segmentPath matches memory without a lasting file: the inode is a new one after a restore.
var segmentPath = regexp.MustCompile(`^(/memfd:|/anon_hugepage|/SYSV)| \(deleted\)$`)

// hiddenName is what a restore puts before the name of a deleted file if that is taken.
var hiddenName = regexp.MustCompile(`/\.ckptfs-[A-Z0-9]+\.([^/]+ \(deleted\))$`)

// tmpName is what the kernel calls an O_TMPFILE: by its inode number.
var tmpName = regexp.MustCompile(`/#\d+ \(deleted\)$`)

func shownName(link string) string {
	return tmpName.ReplaceAllString(hiddenName.ReplaceAllString(link, "/$1"), "/# (deleted)")
}

// vmaNoise is flags that nobody can observe: soft-dirty, and whether a VMA is accounted for,
// which depends on the order in which its rights were changed.
var vmaNoise = regexp.MustCompile(`\b(sd|ac)\b`)

// mapLines makes smaps comparable. The kernel merges neighbours that are alike or does not,
// depending on their history; here they always are.
func mapLines(smaps string) string {
	var all []vma
	for line := range strings.Lines(smaps) {
		line = strings.TrimSuffix(line, "\n")
		if h := vmaHead.FindStringSubmatch(line); h != nil {
			all = append(all, newVMA(h))
		} else if len(all) > 0 {
			v := &all[len(all)-1]
			if f, ok := strings.CutPrefix(line, "VmFlags:"); ok {
				v.flags = strings.Join(strings.Fields(vmaNoise.ReplaceAllString(f, "")), " ")
			} else if s, ok := strings.CutPrefix(line, "KernelPageSize:"); ok {
				v.pageSiz = strings.TrimSpace(s)
			}
		}
	}
	var lines []string
	for i := 0; i < len(all); i++ {
		v := all[i]
		for i+1 < len(all) && v.mergesWith(all[i+1]) {
			i++
			v.end = all[i].end
		}
		lines = append(lines, fmt.Sprintf("%x-%x %s %x %s %s %q %s flags %s", v.start, v.end, v.perms, v.off, v.dev, v.ino, v.path, v.pageSiz, v.flags))
	}
	return strings.Join(lines, "\n")
}

func newVMA(h []string) vma {
	hex := func(s string) uint64 { n, _ := strconv.ParseUint(s, 16, 64); return n }
	v := vma{start: hex(h[1]), end: hex(h[2]), perms: h[3], off: hex(h[4]), dev: h[5], ino: h[6], path: shownName(h[7])}
	if segmentPath.MatchString(v.path) || v.path == "anon_inode:[io_uring]" {
		v.dev, v.ino = "-", "-"
	}
	return v
}

func (v vma) mergesWith(n vma) bool {
	if v.end != n.start || v.perms != n.perms || v.path != n.path || v.flags != n.flags || v.ino != n.ino || v.pageSiz != n.pageSiz {
		return false
	}
	return v.ino == "0" || n.off == v.off+v.end-v.start
}

func sorted(s string) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	slices.Sort(l)
	return strings.Join(l, "\n")
}
