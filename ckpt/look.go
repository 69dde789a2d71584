package ckpt

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// looked is what can be learned of a process without stopping it.
type looked struct {
	pid    int
	stat   procfs.Stat
	status procfs.Status
	areas  []area
	exe    whereabouts
}

// zombie reports whether nothing but an exit status is left of the process.
func (l *looked) zombie() bool { return l.stat.State == 'Z' }

// survey is a look at a whole tree.
type survey struct {
	root     int
	policy   policy.Set
	procs    []*looked // parents before children
	findings []image.Finding
	passing  lasting // see fleeting; nil: the last looks have all found the same
	out      *outside
	rings    map[uint64]bool // every io_uring, see kind.Scene
	order    kcmpOrder
	socks    *kind.SockMemo
	tables   *tables
	names    map[inode]string // other links that were found, which the freeze need not look for
}

// Prepare begins with what a checkpoint needs whatever its tree is, some ms of work, and does not wait for it.
func Prepare() {
	go kind.PrepareRings() // for checkRingThreads
}

// look surveys the tree below root without disturbing it. What vanishes meanwhile is left
// out. Only an impossible root is an error; what cannot be kept becomes a finding.
func look(root int, set policy.Set) (*survey, error) {
	pids, err := Tree(root)
	if err != nil {
		return nil, err
	}
	s := &survey{root: root, policy: set, rings: map[uint64]bool{}, order: kcmpOrder{}}
	if pids, err = s.leaveOutSelf(pids); err != nil {
		return nil, err
	}
	Prepare()
	if err := s.lookAtAll(pids); err != nil {
		return nil, err
	}
	if !s.vforking() { // the child has its parent's memory until it execs
		s.checkShared()
	}
	if err := s.lookAtFiles(); err != nil {
		return nil, err
	}
	for _, l := range s.procs {
		if !l.zombie() {
			s.checkRingThreads(l.pid)
		}
	}
	s.findings = unique(s.findings)
	return s, nil
}

// lookAtAll looks at the processes, on all processors.
func (s *survey) lookAtAll(pids []int) error {
	procs, each := make([]*looked, len(pids)), make([]survey, len(pids))
	err := allProcs(len(pids), func(i int) (err error) {
		pid := pids[i]
		each[i] = survey{root: s.root, policy: s.policy}
		procs[i], err = each[i].lookAt(pid)
		if err != nil && pid != s.root && ending(pid) {
			procs[i] = nil // the next look or the freeze sees what has become of it
			return nil
		}
		if err != nil {
			return &TargetError{pid, vanished(err), ""}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, l := range procs {
		s.findings = append(s.findings, each[i].findings...)
		if l != nil {
			s.procs = append(s.procs, l)
		}
	}
	return nil
}

// leaveOutSelf takes this process out of the tree, and says so: who asks about his shell wants to
// know of the rest.
func (s *survey) leaveOutSelf(pids []int) ([]int, error) {
	self := os.Getpid()
	if s.root == self {
		return nil, refuseSelf(s.root, pids)
	}
	if i := slices.Index(pids, self); i >= 0 {
		pids = slices.Delete(pids, i, i+1)
		s.findings = append(s.findings, image.Finding{Severity: image.Refuse, PID: int32(self), FD: image.NoFD, Kind: "ckptfs itself",
			What: "it runs in the tree and is left out of this list, but a checkpoint has to be taken from outside", Remedy: fromOutside(s.root)})
	}
	return pids, nil
}

// ending reports whether a process has ended or is about to: what is read of it then fails in
// many ways, with EACCES among others.
func ending(pid int) bool {
	const pfExiting = 0x4 // PF_EXITING of linux/sched.h
	st, err := readStat(pid)
	return err != nil || st.State == 'Z' || st.State == 'X' || st.Flags&pfExiting != 0
}

// vforking reports whether somebody in the tree waits in vfork(2).
func (s *survey) vforking() bool {
	return slices.ContainsFunc(s.findings, func(f image.Finding) bool { return f.Kind == vforkKind })
}

// lookAt reads one process and finds what of it cannot be kept, its files excepted.
func (s *survey) lookAt(pid int) (*looked, error) {
	l := &looked{pid: pid}
	var err error
	if l.stat, err = readStat(pid); err != nil {
		return nil, err
	}
	if l.status, err = readStatus(pid); err != nil {
		return nil, err
	}
	if l.zombie() {
		return l, nil
	}
	s.findings = append(s.findings, checkTraceable(l)...)
	if err := task.Check(pid, func(f image.Finding) { s.findings = append(s.findings, f) }); err != nil {
		return nil, err
	}
	if task.ManyThreads(l.status.Threads) {
		task.PrepareAlike()
	}
	s.checkGoneCwd(pid)
	smaps, err := readSmaps(pid)
	if err != nil {
		return nil, err
	}
	var bad []image.Finding
	l.areas, bad = areas(pid, smaps)
	s.findings = append(s.findings, bad...)
	s.lookAtAIO(l)
	return l, s.lookAtExe(l)
}

// vforkKind is the kind of a finding that goes away by itself, as a rule at once.
const vforkKind = "vfork"

// checkTraceable finds a process that cannot be stopped as a whole.
func checkTraceable(l *looked) []image.Finding {
	f := image.Finding{Severity: image.Refuse, PID: int32(l.pid), FD: image.NoFD}
	if t := l.status.TracerPid; t != 0 && !ours(t) {
		f.Kind, f.What = "traced process", fmt.Sprintf("pid %d traces it, and a process has room for one tracer", t)
		f.Remedy = fmt.Sprintf("end pid %d (a debugger or strace) first", t)
		return []image.Finding{f}
	}
	tids, err := threads(l.pid)
	if err != nil {
		return nil // it vanished; whoever needs it finds out
	}
	for _, tid := range tids {
		b, err := quickread.File(fmt.Sprintf("/proc/%d/task/%d/stat", l.pid, tid))
		if err != nil {
			continue
		}
		st, err := procfs.ParseStat(b)
		if err != nil {
			continue
		}
		if tid == l.pid && st.State == 'Z' && len(tids) > 1 {
			f.Kind, f.What, f.Remedy = "exited main thread", "its main thread has called pthread_exit while others run on", "wait until it ends"
			return []image.Finding{f}
		}
		if st.State == 'D' && vforkWait(wchan(l.pid, tid)) {
			f.TID = int32(tid)
			f.Kind, f.What, f.Remedy = vforkKind, "it waits in vfork(2) for its child to exec or exit and cannot be stopped until then", "try again in a moment"
			return []image.Finding{f}
		}
	}
	return nil
}

// ours reports whether a tracer is a thread of this process, as with a tree held by Freeze.
func ours(tracer int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tracer))
	return err == nil
}

// vforkWait reports whether a kernel function is the wait for a vfork child, which depending
// on the compiler is inlined in kernel_clone or not.
func vforkWait(wchan string) bool {
	return strings.Contains(wchan, "kernel_clone") || strings.Contains(wchan, "vfork")
}

// wchan names the kernel function a thread sleeps in.
func wchan(pid, tid int) string {
	b, err := quickread.File(fmt.Sprintf("/proc/%d/task/%d/wchan", pid, tid))
	if err != nil {
		return ""
	}
	return string(b)
}

// pids lists the processes of the survey that have files and memory.
func (s *survey) pids() []int {
	var out []int
	for _, l := range s.procs {
		if !l.zombie() {
			out = append(out, l.pid)
		}
	}
	return out
}

// lookAtFiles finds what of the tree's files and shared memory cannot be kept.
func (s *survey) lookAtFiles() error {
	t := s.order.findTables(s.pids(), liveThreads)
	s.tables = t
	if !s.vforking() {
		s.findings = append(s.findings, t.check(s.procs[0].stat.PPID)...)
	}
	set, err := collectFiles(t, nil, nil)
	if err != nil {
		return err
	}
	defer set.close()
	s.out = newOutside(s.treePIDs())
	sc := s.scene(set)
	s.findings = append(s.findings, set.check(sc)...)
	s.socks = kind.RememberSockets(sc)
	set.prepareMemory()
	s.checkSegments()
	if err := s.checkSysV(); err != nil {
		return err
	}
	if err := s.checkIPC(); err != nil {
		return err
	}
	s.checkSessions(set.found, sc.Controlled())
	return nil
}

// tableIDs are a process and its threads that have a descriptor table of their own.
func (s *survey) tableIDs(pid int) []int {
	ids := []int{pid}
	for tid, owner := range s.tables.own {
		if owner == pid {
			ids = append(ids, tid)
		}
	}
	return ids
}

func (s *survey) treePIDs() []int {
	pids := make([]int, len(s.procs))
	for i, l := range s.procs {
		pids[i] = l.pid
	}
	return pids
}

// scene is what the kinds may ask while nothing is dumped.
func (s *survey) scene(set *fileSet) *kind.Scene {
	return &kind.Scene{Files: set.found, Outside: s.out.fd, Root: "/", // paths in /proc are as we see them
		Blob:    func([]byte) image.ObjRef { return 0 },
		Segment: func(*kind.Found) (image.ObjRef, error) { return 0, nil }, MapsGone: s.mapsGone, Maps: s.maps, OtherName: s.otherNameOnce, Member: s.memberOnce(), Rings: s.rings, Policy: s.policy}
}

// memberOnce is member that asks once for each id: thousands of sockets name the same peer.
func (s *survey) memberOnce() func(id int) bool {
	known := map[int]bool{}
	return func(id int) bool {
		is, ok := known[id]
		if !ok {
			is = s.member(id)
			known[id] = is
		}
		return is
	}
}

// member reports whether an id is that of a process or thread of the tree.
func (s *survey) member(id int) bool {
	status, err := readStatus(id)
	return err == nil && slices.ContainsFunc(s.procs, func(l *looked) bool { return l.pid == status.Tgid })
}

// checkSegments refuses shared memory that somebody outside the tree sees too: after a
// restore there would be two of it.
func (s *survey) checkSegments() {
	for _, l := range s.procs {
		for i := range l.areas {
			a := &l.areas[i]
			if a.kind != image.VMASegment || !a.Shared || a.sysv() {
				continue
			}
			if pid := s.sharer(a); pid != 0 {
				s.findings = append(s.findings, image.Finding{Severity: image.Refuse, PID: int32(l.pid), FD: image.NoFD, Addr: a.Start,
					Kind: "shared memory " + a.Path, What: fmt.Sprintf("pid %d, which is outside the tree, shares it", pid),
					Remedy: fmt.Sprintf("checkpoint a tree that holds pid %d too", pid)})
			}
		}
	}
}

// sharer returns the pid of a process outside the tree that would no longer see what the tree
// writes to the memory, or the other way round, or 0.
func (s *survey) sharer(a *area) int {
	switch g := a.gone; {
	case g == nil:
		return s.out.memory(a.Dev, a.Ino)
	case a.mayWrite(): // maps may show another device than stat(2)
		return cmp.Or(s.out.memory(a.Dev, a.Ino), s.out.holder(g.st.Dev, g.st.Ino))
	default: // a copy is as good, if nobody writes
		return cmp.Or(s.out.writer(a.Dev, a.Ino), s.out.fd(g.st.Dev, g.st.Ino, unix.O_WRONLY))
	}
}

// unique drops findings that say the same of several mappings or descriptors twice.
func unique(all []image.Finding) []image.Finding {
	seen := map[string]bool{}
	out := slices.DeleteFunc(all, func(f image.Finding) bool {
		s := f.String()
		dup := seen[s]
		seen[s] = true
		return dup
	})
	slices.SortStableFunc(out, func(a, b image.Finding) int { return cmp.Compare(a.Severity, b.Severity) })
	return out
}

// Explain lists every refusal and every loss that a checkpoint of the tree below pid would
// meet now under the policies of set, refusals first. It freezes nothing and changes nothing.
func Explain(pid int, set policy.Set) ([]image.Finding, error) {
	s, err := steadyLook(pid, set)
	if err != nil {
		return nil, err
	}
	return withoutLazy(s.findings), nil
}
