package image

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Print writes what an image holds, for people to read: the file itself, its processes as a
// tree, memory, descriptors, files, shared memory and what will be lost. Names come out quoted
// where they hold anything that a terminal might act on.
func Print(w io.Writer, r *Reader) error {
	p := &printer{Writer: bufio.NewWriter(w), m: r.Manifest}
	p.header(r)
	p.tree()
	p.memory()
	p.tables()
	p.files()
	p.segments()
	p.ipc()
	p.lost()
	return p.Flush() // reports the first error of all writes
}

// printer writes the parts of Print. A bufio.Writer keeps its first error for Flush.
type printer struct {
	*bufio.Writer
	m *Manifest
}

// line writes one line.
func (p *printer) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// header tells of the file and where it is from.
func (p *printer) header(r *Reader) {
	h, l := &p.m.Host, r.Layout
	p.line("ckptfs image, format %d", r.Layout.Version)
	p.line("  taken   %s by %s", time.Unix(0, p.m.Created).UTC().Format("2006-01-02 15:04:05.000 MST"), quote(p.m.Tool))
	p.line("  host    %s, Linux %s %s, %s", quote(h.Hostname), quote(h.Kernel), quote(h.Arch), quote(h.CPU))
	p.line("  size    %s: head %s, data %s, trailer %s; %d chunks", bytesText(l.Total), bytesText(l.HeadLen), bytesText(l.DataLen), bytesText(l.TrailerLen), len(l.Chunks))
	p.line("  root    %s", r.root)
	if len(p.m.Policies) > 0 {
		p.line("  policy  %s", quote(strings.Join(p.m.Policies, " ")))
	}
}

// tree draws the processes below their parents.
func (p *printer) tree() {
	p.line("\nprocesses")
	children := make(map[int32][]int)
	for i := range p.m.Tasks {
		if i > 0 {
			children[p.m.Tasks[i].PPID] = append(children[p.m.Tasks[i].PPID], i)
		}
	}
	p.walk(children)
}

// maxIndent bounds how far the tree moves to the right.
const maxIndent = 40

// node is a task to be drawn.
type node struct{ task, depth int }

// walk writes the processes below the root. It does not recurse: a chain of processes may be
// as long as the manifest.
func (p *printer) walk(children map[int32][]int) {
	for stack := []node{{}}; len(stack) > 0; {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		t := &p.m.Tasks[n.task]
		p.line("  %s%d %s  %s", strings.Repeat("  ", min(n.depth, maxIndent)), t.PID, quote(t.Comm), t.describe())
		for _, c := range slices.Backward(children[t.PID]) {
			stack = append(stack, node{c, n.depth + 1})
		}
	}
}

// describe says what state a process is in and what it uses.
func (t *Task) describe() string {
	where := fmt.Sprintf("pgid %d, sid %d", t.PGID, t.SID)
	switch t.State {
	case TaskZombie:
		return fmt.Sprintf("zombie, wait status %#x, %s", t.ExitStatus, where)
	case TaskStopped:
		where = fmt.Sprintf("stopped by signal %d, %s", t.StopSignal, where)
	}
	s := fmt.Sprintf("%s, uid %d, %s, mm %d, fds %d", where, t.Threads[0].Creds.UID[1], count(len(t.Threads), "thread"), t.MM, t.Threads[0].FDTable)
	if n := len(t.Pending); n > 0 {
		s += ", " + count(n, "signal") + " pending"
	}
	return s
}

// memory sums up the address spaces.
func (p *printer) memory() {
	p.line("\nmemory")
	for i := range p.m.MMs {
		mm := &p.m.MMs[i]
		var mapped, stored, pieces uint64
		for j := range mm.VMAs {
			v := &mm.VMAs[j]
			mapped += v.End - v.Start
			pieces += uint64(len(v.Extents))
			stored += stored64(v.Extents)
		}
		p.line("  mm %d: %s, %s, %s mapped, %s stored in %s", i+1, quote(mm.Exe.Path), count(len(mm.VMAs), "mapping"), bytesText(int64(mapped)), bytesText(int64(stored)), count(int(pieces), "piece"))
	}
}

// stored64 is how many bytes of extents the image holds.
func stored64(all []Extent) (n uint64) {
	for _, e := range all {
		n += e.Len
	}
	return n
}

// tables lists every descriptor.
func (p *printer) tables() {
	p.line("\ndescriptors")
	for i := range p.m.FDTables {
		p.line("  table %d: %s", i+1, count(len(p.m.FDTables[i].FDs), "descriptor"))
		for _, fd := range p.m.FDTables[i].FDs {
			note := ""
			if fd.CloExec {
				note = ", close-on-exec"
			}
			f := &p.m.Files[fd.File-1]
			p.line("    %4d  file %d %s %s%s", fd.Num, fd.File, quote(f.Kind), quote(f.Path), note)
		}
	}
}

// files lists every open file description.
func (p *printer) files() {
	p.line("\nopen files")
	for i := range p.m.Files {
		f := &p.m.Files[i]
		s := fmt.Sprintf("  file %d: %s %s, flags %#o, at %d", i+1, quote(f.Kind), quote(f.Path), f.Flags, f.Pos)
		if f.Blob != 0 {
			s += fmt.Sprintf(", %s in blob %d", bytesText(p.m.Blobs[f.Blob-1].Len), f.Blob)
		}
		if f.Segment != 0 {
			s += fmt.Sprintf(", memory in segment %d", f.Segment)
		}
		if n := len(f.Locks); n > 0 {
			s += ", " + count(n, "lock")
		}
		p.line("%s", s)
	}
}

// segments lists shared memory.
func (p *printer) segments() {
	if len(p.m.Segments) == 0 {
		return
	}
	p.line("\nshared memory and mapped deleted files")
	for i := range p.m.Segments {
		s := &p.m.Segments[i]
		name := "anonymous"
		switch {
		case s.SysV != nil:
			name = fmt.Sprintf("SysV shared memory %d, key %#x", s.SysV.ID, uint32(s.SysV.Made))
		case s.Memfd:
			name = "memfd " + quote(s.Name)
		case s.Huge != 0:
			name = "anonymous, of huge pages"
		case s.Path != "":
			name = "deleted file " + quote(s.Path)
		}
		p.line("  segment %d: %s, %s, %s stored", i+1, name, bytesText(s.Size), bytesText(int64(stored64(s.Extents))))
	}
}

// ipc lists semaphore sets and message queues.
func (p *printer) ipc() {
	if len(p.m.SemSets)+len(p.m.MsgQueues) == 0 {
		return
	}
	p.line("\nSysV semaphores and message queues")
	for i := range p.m.SemSets {
		s := &p.m.SemSets[i]
		text := fmt.Sprintf("semaphore set %d, key %#x, %s", s.Perm.ID, uint32(s.Perm.Key), count(len(s.Sems), "semaphore"))
		if n := len(s.Undo); n > 0 {
			text += ", " + count(n, "adjustment")
		}
		p.line("  %s", text)
	}
	for i := range p.m.MsgQueues {
		q := &p.m.MsgQueues[i]
		p.line("  message queue %d, key %#x, %s", q.Perm.ID, uint32(q.Perm.Key), count(int(q.Count), "message"))
	}
}

// lost lists what a restore will not bring back.
func (p *printer) lost() {
	if len(p.m.Lost) == 0 {
		return
	}
	p.line("\nlost")
	for _, f := range p.m.Lost {
		p.line("  %s", plainText(f.String()))
	}
}

// count is "1 thread" or "2 threads".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// bytesText writes a number of bytes for people: "4.0 KiB".
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}

// quote returns a name as it is if it is plain, else as a Go string.
func quote(s string) string {
	if s == "" || !printable(s) {
		return strconv.Quote(s)
	}
	return s
}

// printable reports whether a terminal shows s as it is.
func printable(s string) bool {
	for _, c := range s {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return false
		}
	}
	return true
}

// plainText quotes a whole sentence only when it has to.
func plainText(s string) string {
	if printable(s) {
		return s
	}
	return strconv.Quote(s)
}
