package image

import (
	"encoding/binary"
	"strings"
)

// Bounds of the kernel, and what no process passes.
const (
	maxPID      = 1 << 22 // PID_MAX_LIMIT
	maxSignal   = 64      // _NSIG
	siginfoSize = 128
	maxRlimits  = 32
	maxFD       = 1 << 30
	maxPath     = 16 << 10 // PATH_MAX is 4096, and fdinfo may show more
	maxComm     = 64       // TASK_COMM_LEN is 16
	maxXState   = 1 << 20
	regsLen     = 27 * 8 // struct user_regs_struct of amd64
	maxGroups   = 1 << 16
	maxFilters  = 1 << 10 // seccomp filters of one thread

	maxLeftovers = 64
)

// validator keeps what spans tasks while a manifest is checked.
type validator struct {
	m        *Manifest
	tasks    map[int32]bool    // pids of the tasks so far
	ids      map[int32]bool    // pids and tids so far: they are one space
	sessions map[int32]int32   // process group → its session
	memory   map[ObjRef]ObjRef // sighand → mm
}

// Validate checks that the manifest makes sense as a whole: every reference points at
// something, parents stand before their children, ids are unique, pages lie where they may.
// It returns an ErrHostile that names the field, or an ErrFeature.
func (m *Manifest) Validate() error {
	if len(m.Features) > 0 { // this version knows none
		return &FeatureError{Path: "features", Name: m.Features[0]}
	}
	if len(m.Tasks) == 0 {
		return bad("tasks", "there is none")
	}
	if err := m.Host.components(); err != nil {
		return err
	}
	v := &validator{
		m: m, tasks: make(map[int32]bool), ids: make(map[int32]bool),
		sessions: make(map[int32]int32), memory: make(map[ObjRef]ObjRef),
	}
	for i := range m.Tasks {
		if err := v.task(&m.Tasks[i], i == 0); err != nil {
			return at(err, "tasks[%d]", i)
		}
	}
	for _, check := range [...]func() error{m.validMMs, m.validFiles, m.validTables, m.validLost, m.validPolicies, m.validIPC} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// components checks the layout of the XSTATE regset.
func (h *Host) components() error {
	const first, last, header = 2, 62, 576
	seen := uint64(0)
	for i, c := range h.XComponents {
		switch {
		case c.Bit < first || c.Bit > last || seen>>c.Bit&1 == 1:
			return at(bad("bit", "is %d", c.Bit), "host.xcomponents[%d]", i)
		case c.Off < header || c.Size == 0 || uint64(c.Off)+uint64(c.Size) > maxXState:
			return at(bad("off", "%d bytes at %d", c.Size, c.Off), "host.xcomponents[%d]", i)
		}
		seen |= 1 << c.Bit
	}
	return nil
}

// ref checks an object reference that must point at one of n objects.
func ref(field string, r ObjRef, n int) error {
	if r == 0 {
		return bad(field, "is missing")
	}
	return optional(field, r, n)
}

// optional checks an object reference that may be 0.
func optional(field string, r ObjRef, n int) error {
	if int64(r) > int64(n) {
		return bad(field, "points at number %d of %d", r, n)
	}
	return nil
}

// within checks a number.
func within(field string, v, low, high int64) error {
	if v < low || v > high {
		return bad(field, "is %d, not from %d to %d", v, low, high)
	}
	return nil
}

// text checks a string that goes to the kernel with a NUL at its end.
func text(field, s string, most int) error {
	if len(s) > most {
		return bad(field, "has %d bytes, the limit is %d", len(s), most)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return bad(field, "holds a NUL")
	}
	return nil
}

// path checks the path of a file as the kernel tells it: one that leads back by .. is no kernel's.
func path(field, s string) error {
	if strings.HasPrefix(s, "/") {
		for name := range strings.SplitSeq(s, "/") {
			if name == "." || name == ".." {
				return bad(field, "%q leads through %q", s, name)
			}
		}
	}
	return text(field, s, maxPath)
}

// first returns the first error of a list of checks.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// task checks one process.
func (v *validator) task(t *Task, root bool) error {
	err := first(
		within("pid", int64(t.PID), 1, maxPID),
		within("ppid", int64(t.PPID), 0, maxPID),
		within("pgid", int64(t.PGID), 0, maxPID),
		within("sid", int64(t.SID), 0, maxPID),
		within("exit_signal", int64(t.ExitSignal), 0, maxSignal),
		within("exit_status", int64(t.ExitStatus), 0, 0xffff),
		within("stop_signal", int64(t.StopSignal), 0, maxSignal),
		within("oom_score_adj", int64(t.OOMScoreAdj), -1000, 1000),
		within("autogroup_nice", int64(t.AutoNice), -20, 19),
		t.xcomp(),
		text("comm", t.Comm, maxComm),
		v.family(t, root),
		pending(t.Pending),
		t.timers(),
		optional("ctl_tty", t.CtlTTY, len(v.m.Files)),
		within("tty_pgid", int64(t.Foreground), 0, maxPID),
	)
	if err != nil {
		return err
	}
	if t.CtlTTY != 0 && t.SID != t.PID {
		return bad("ctl_tty", "stands in a task that leads no session")
	}
	if t.Foreground != 0 && t.CtlTTY == 0 {
		return bad("tty_pgid", "stands in a task without a controlling terminal")
	}
	if t.State == TaskZombie {
		return t.zombie()
	}
	return v.alive(t)
}

// xTiles is XFEATURE_MASK_XTILE_DATA, the only vector state that has to be asked for.
const xTiles = 1 << 18

func (t *Task) xcomp() error {
	if t.XCompPerm&^xTiles != 0 {
		return bad("xcomp_perm", "%#x is none that this version knows", t.XCompPerm)
	}
	return nil
}

// family checks a task's place in the tree.
func (v *validator) family(t *Task, root bool) error {
	switch {
	case v.ids[t.PID]:
		return bad("pid", "%d is there twice", t.PID)
	case !root && !v.tasks[t.PPID]:
		return bad("ppid", "%d is not a task that stands before it", t.PPID)
	case root && t.PPID == t.PID:
		return bad("ppid", "the task is its own parent")
	case t.SID == t.PID && t.PGID != t.PID:
		return bad("pgid", "is %d in the leader of session %d", t.PGID, t.SID)
	}
	v.tasks[t.PID], v.ids[t.PID] = true, true
	if sid, seen := v.sessions[t.PGID]; seen && sid != t.SID && t.PGID != 0 {
		return bad("sid", "is %d, but process group %d is in session %d", t.SID, t.PGID, sid)
	}
	v.sessions[t.PGID] = t.SID
	return nil
}

// zombie checks that nothing is left of a task but its status.
func (t *Task) zombie() error {
	switch {
	case len(t.Threads) > 0:
		return bad("threads", "a zombie has none")
	case t.MM != 0:
		return bad("mm", "a zombie has none")
	case t.Sighand != 0:
		return bad("sighand", "a zombie has none")
	}
	return nil
}

// alive checks what a task has that is no zombie.
func (v *validator) alive(t *Task) error {
	if t.State != TaskRunning && t.State != TaskStopped {
		return bad("state", "there is no state %d", t.State)
	}
	if len(t.Threads) == 0 {
		return bad("threads", "there is none")
	}
	if t.Threads[0].TID != t.PID {
		return bad("threads[0].tid", "is %d, but the first thread is the leader, %d", t.Threads[0].TID, t.PID)
	}
	err := first(
		ref("mm", t.MM, len(v.m.MMs)),
		ref("sighand", t.Sighand, len(v.m.Sighands)),
		t.rlimits(),
	)
	if err != nil {
		return err
	}
	if mm, seen := v.memory[t.Sighand]; seen && mm != t.MM {
		return bad("sighand", "is shared with a task of another mm, which the kernel forbids")
	}
	v.memory[t.Sighand] = t.MM
	for i := range t.Threads {
		if err := v.thread(&t.Threads[i], i == 0); err != nil {
			return at(err, "threads[%d]", i)
		}
	}
	return t.timerThreads()
}

// rlimits checks the limits.
func (t *Task) rlimits() error {
	if len(t.Rlimits) > maxRlimits {
		return bad("rlimits", "has %d of them", len(t.Rlimits))
	}
	for i, l := range t.Rlimits {
		if l.Cur > l.Max {
			return at(bad("cur", "%d is above the hard limit %d", l.Cur, l.Max), "rlimits[%d]", i)
		}
	}
	return nil
}

// pending checks queued signals.
func pending(all [][]byte) error {
	for i, info := range all {
		if len(info) != siginfoSize {
			return at(bad("", "has %d bytes, not %d", len(info), siginfoSize), "pending[%d]", i)
		}
		if n := int32(binary.LittleEndian.Uint32(info)); n < 1 || n > maxSignal {
			return at(bad("", "there is no signal %d", n), "pending[%d]", i)
		}
	}
	return nil
}

// timers checks itimers and POSIX timers by themselves.
func (t *Task) timers() error {
	for i, it := range t.ITimers {
		if it.Interval < 0 || it.Value < 0 {
			return at(bad("", "is negative"), "itimers[%d]", i)
		}
	}
	ids := make(map[int32]bool, len(t.Timers))
	for i, p := range t.Timers {
		err := first(
			within("id", int64(p.ID), 0, 1<<31-1),
			within("notify", int64(p.Notify), 0, 7),
			within("signal", int64(p.Signal), 0, maxSignal),
			within("tid", int64(p.TID), 0, maxPID),
			within("interval", p.Interval, 0, 1<<62),
			within("value", p.Value, 0, 1<<62),
			within("overrun", int64(p.Overrun), 0, 1<<31-1),
		)
		if err == nil && ids[p.ID] {
			err = bad("id", "%d is there twice", p.ID)
		}
		if err != nil {
			return at(err, "timers[%d]", i)
		}
		ids[p.ID] = true
	}
	return nil
}

// timerThreads checks that timers signal threads of their own task.
func (t *Task) timerThreads() error {
	for i, p := range t.Timers {
		if p.TID == 0 {
			continue
		}
		own := false
		for j := range t.Threads {
			own = own || t.Threads[j].TID == p.TID
		}
		if !own {
			return at(bad("tid", "%d is no thread of the task", p.TID), "timers[%d]", i)
		}
	}
	return nil
}

// thread checks one thread.
func (v *validator) thread(th *Thread, leader bool) error {
	if v.ids[th.TID] && !leader {
		return bad("tid", "%d is there twice", th.TID)
	}
	v.ids[th.TID] = true
	if v.m.Host.Arch == "amd64" && len(th.Regs) != regsLen {
		return bad("regs", "has %d bytes, not %d", len(th.Regs), regsLen)
	}
	if th.Blocked != nil && th.Blocked.Remaining < -2 {
		return bad("blocked.remaining", "is %d", th.Blocked.Remaining)
	}
	return first(
		within("tid", int64(th.TID), 1, maxPID),
		text("comm", th.Comm, maxComm),
		within("xstate", int64(len(th.XState)), 0, maxXState),
		pending(th.Pending),
		ref("fd_table", th.FDTable, len(v.m.FDTables)),
		ref("fs", th.FS, len(v.m.FSs)),
		within("creds.groups", int64(len(th.Creds.Groups)), 0, maxGroups),
		within("sched.policy", int64(th.Sched.Policy), 0, 7),
		within("sched.nice", int64(th.Sched.Nice), -20, 19),
		within("sched.priority", int64(th.Sched.Priority), 0, 99),
		within("prctl.pdeathsig", int64(th.Prctl.PDeathSig), 0, maxSignal),
		within("sud", int64(len(th.SUD)), 0, 256),
		filters(th.Seccomp),
		th.MemPolicy.validate("mem_policy"),
	)
}

// filters checks seccomp filters: whole instructions of 8 bytes, as many as the kernel takes.
func filters(all []Seccomp) error {
	if len(all) > maxFilters {
		return bad("seccomp", "has %d filters", len(all))
	}
	for i, s := range all {
		if n := len(s.Filter); n == 0 || n%8 != 0 || n > 4096*8 {
			return at(bad("filter", "has %d bytes", n), "seccomp[%d]", i)
		}
	}
	return nil
}
