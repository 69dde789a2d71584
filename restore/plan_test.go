package restore

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// simTask is a process as the kernel would have it.
type simTask struct{ pid, ppid, pgid, sid int }

// simulate carries out a plan as the kernel would, with its rules, and returns the tasks.
func simulate(p *plan, host hostIDs, tasks int) ([]simTask, error) {
	proc := map[int]*simTask{seed: {pid: 1 << 20, ppid: 1, pgid: host.PGID, sid: host.SID}}
	byPID := func(pid int) *simTask {
		for _, s := range proc {
			if s.pid == pid {
				return s
			}
		}
		return nil
	}
	group := func(g, sid int) bool {
		for _, s := range proc {
			if s.pgid == g && s.sid == sid {
				return true
			}
		}
		return g == host.PGID && sid == host.SID
	}
	fresh := 1 << 21
	birth := func(n, ppid int, like *simTask) error {
		pid := p.nodes[n].PID
		if pid == 0 {
			fresh++
			pid = fresh
		}
		if byPID(pid) != nil || host.Taken(pid) {
			return fmt.Errorf("pid %d is in use", pid)
		}
		proc[n] = &simTask{pid, ppid, like.pgid, like.sid}
		return nil
	}
	for i, st := range p.steps {
		from, self := proc[st.From], proc[st.Node]
		if (st.Op <= stepOrphan) == (self != nil) {
			return nil, fmt.Errorf("step %d %+v: the process is there or not", i, st)
		}
		var err error
		switch st.Op {
		case stepClone:
			err = birth(st.Node, from.pid, from)
		case stepSibling:
			if p.nodes[st.From].ExitSignal != int(unix.SIGCHLD) {
				err = fmt.Errorf("the sibling would give it exit signal %d", p.nodes[st.From].ExitSignal)
				break
			}
			err = birth(st.Node, from.ppid, from)
		case stepOrphan:
			up := from
			for up != nil && up.pid != proc[st.Heir].pid {
				up = byPID(up.ppid)
			}
			if up == nil {
				err = fmt.Errorf("heir %d is no ancestor", proc[st.Heir].pid)
				break
			}
			err = birth(st.Node, proc[st.Heir].pid, from)
		case stepSetsid:
			for _, s := range proc {
				if s.pgid == self.pid {
					err = fmt.Errorf("setsid: %d leads a group", self.pid)
				}
			}
			self.sid, self.pgid = self.pid, self.pid
		case stepGroup:
			g := proc[st.Group].pid
			if st.Group == seed {
				g = host.PGID
			}
			if self.sid == self.pid || g != self.pid && !group(g, self.sid) {
				err = fmt.Errorf("setpgid of %d to %d: EPERM", self.pid, g)
			}
			self.pgid = g
		case stepEnd:
			for _, s := range proc {
				if s.ppid == self.pid {
					err = fmt.Errorf("placeholder %d ends with a child", self.pid)
				}
			}
			delete(proc, st.Node)
		}
		if err != nil {
			return nil, fmt.Errorf("step %d %+v: %w", i, st, err)
		}
	}
	var out []simTask
	for n := 1; n <= tasks; n++ {
		if proc[n] == nil {
			return nil, fmt.Errorf("task %d was not made", n)
		}
		out = append(out, *proc[n])
	}
	return out, nil
}

func taskOf(pid, ppid, pgid, sid int32) image.Task {
	return image.Task{PID: pid, PPID: ppid, PGID: pgid, SID: sid, ExitSignal: int32(unix.SIGCHLD), State: image.TaskRunning}
}

func free(...int) func(int) bool { return func(int) bool { return false } }

func taken(pids ...int) func(int) bool {
	return func(pid int) bool {
		for _, p := range pids {
			if p == pid {
				return true
			}
		}
		return false
	}
}

func TestPlanTree(t *testing.T) {
	host := hostIDs{SID: 900, PGID: 901, Taken: free()}
	busy := hostIDs{SID: 900, PGID: 901, Taken: taken(10, 900, 901)}
	for _, c := range []struct {
		name  string
		host  hostIDs
		tasks []image.Task
		warn  int
		same  bool // comes out exactly as it was
	}{
		{"own session", host, []image.Task{taskOf(100, 1, 100, 100), taskOf(101, 100, 100, 100)}, 0, true},
		{"job of our shell", host, []image.Task{taskOf(100, 1, 100, 900), taskOf(101, 100, 100, 900)}, 0, true},
		{"in our own process group", host, []image.Task{taskOf(100, 1, 901, 900), taskOf(101, 100, 100, 900)}, 0, false},
		{"job of a shell that is gone", host, []image.Task{taskOf(100, 10, 100, 10), taskOf(101, 100, 100, 10)}, 0, true},
		{"second of a pipeline of a shell that is gone", host, []image.Task{taskOf(100, 10, 99, 10), taskOf(101, 100, 99, 10)}, 0, true},
		{"job of a shell that lives elsewhere", busy, []image.Task{taskOf(100, 10, 100, 10), taskOf(101, 100, 101, 10)}, 1, false},
		{"in the group of a shell that lives elsewhere", busy, []image.Task{taskOf(100, 10, 10, 10), taskOf(101, 100, 10, 10)}, 1, false},
		{"daemon whose leader is gone", host, []image.Task{taskOf(101, 1, 100, 100)}, 0, true},
		{"children forked before setsid", host, []image.Task{taskOf(100, 1, 100, 100), taskOf(110, 100, 110, 110), taskOf(111, 110, 100, 100), taskOf(112, 110, 110, 110)}, 0, true},
		{"leader below a leader forked before setsid", host, []image.Task{
			taskOf(100, 1, 100, 100), taskOf(110, 100, 110, 110), taskOf(120, 110, 120, 120), taskOf(121, 120, 100, 100)}, 0, true},
		{"adopted, leader alive beside it", host, []image.Task{taskOf(100, 1, 100, 100), taskOf(110, 100, 110, 110), taskOf(112, 100, 110, 110)}, 0, true},
		{"adopted, leader gone", host, []image.Task{taskOf(100, 1, 100, 100), taskOf(112, 100, 110, 110), taskOf(113, 112, 110, 110)}, 0, true},
		{"adopted, leader deeper", host, []image.Task{
			taskOf(100, 1, 100, 100), taskOf(110, 100, 100, 100), taskOf(120, 110, 120, 120), taskOf(130, 100, 120, 120)}, 0, true},
		{"adopted before its leader in the list", host, []image.Task{
			taskOf(100, 1, 100, 100), taskOf(105, 100, 120, 120), taskOf(110, 100, 100, 100), taskOf(120, 110, 120, 120)}, 0, true},
		{"group whose leader is gone", host, []image.Task{taskOf(100, 1, 100, 100), taskOf(111, 100, 110, 100), taskOf(112, 100, 110, 100)}, 0, true},
		{"leader moved to another group", host, []image.Task{taskOf(100, 1, 100, 100), taskOf(110, 100, 111, 100), taskOf(111, 100, 111, 100), taskOf(112, 110, 110, 100)}, 0, true},
		{"two that swapped their groups", host, []image.Task{taskOf(100, 1, 100, 100), taskOf(110, 100, 111, 100), taskOf(111, 100, 110, 100), taskOf(112, 100, 110, 100), taskOf(113, 100, 111, 100)}, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := planTree(c.tasks, c.host)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.warnings) != c.warn {
				t.Errorf("warnings: %q", p.warnings)
			}
			host := c.host
			got, err := simulate(p, host, len(c.tasks))
			if err != nil {
				t.Fatalf("%v\n%+v", err, p.steps)
			}
			for i, want := range c.tasks {
				g := got[i]
				if g.pid != int(want.PID) || i > 0 && g.ppid != int(want.PPID) {
					t.Errorf("task %d: %+v, want %+v", i, g, want)
				}
				if c.same && (g.pgid != int(want.PGID) || g.sid != int(want.SID)) {
					t.Errorf("task %d: group %d session %d, want %d %d", i, g.pgid, g.sid, want.PGID, want.SID)
				}
				for k, other := range c.tasks[:i] { // who was together still is
					if (other.SID == want.SID) != (got[k].sid == g.sid) || (other.PGID == want.PGID) != (got[k].pgid == g.pgid) {
						t.Errorf("tasks %d and %d: %+v %+v", k, i, got[k], g)
					}
				}
			}
		})
	}
}

func TestPlanImpossible(t *testing.T) {
	host := hostIDs{SID: 900, PGID: 901, Taken: free()}
	for _, c := range []struct {
		want  string
		tasks []image.Task
	}{
		{"image: pid 101: its parent 50 does not stand before it", []image.Task{taskOf(100, 1, 100, 100), taskOf(101, 50, 100, 100)}},
		{"image: pid 100: it leads a session but is in process group 7", []image.Task{taskOf(100, 1, 7, 100)}},
		{"image: pid 111: its process group 110 is in another session", []image.Task{taskOf(100, 1, 100, 100), taskOf(110, 100, 110, 110), taskOf(111, 100, 110, 100)}},
		{"image: pid 121: no process can fork it into session 130 under its parent 120", []image.Task{
			taskOf(100, 1, 100, 100), taskOf(120, 100, 100, 100), taskOf(130, 100, 130, 130), taskOf(121, 120, 130, 130)}},
	} {
		_, err := planTree(c.tasks, host)
		if err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// TestPlanHistories lets random trees come into being as programs make them, by fork, setsid,
// setpgid, exit and adoption, and checks that every one of them can be planned exactly.
func TestPlanHistories(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	sessions := 0
	for round := range 3000 {
		tasks := history(rng)
		host := hostIDs{SID: 900, PGID: 901, Taken: free()}
		p, err := planTree(tasks, host)
		if err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, describe(tasks))
		}
		got, err := simulate(p, host, len(tasks))
		if err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, describe(tasks))
		}
		for i, want := range tasks {
			if w := (simTask{int(want.PID), int(want.PPID), int(want.PGID), int(want.SID)}); i > 0 && got[i] != w || i == 0 && (got[i].sid != w.sid || got[i].pgid != w.pgid) {
				t.Fatalf("round %d: task %+v, want %+v\n%s", round, got[i], w, describe(tasks))
			}
			if want.SID != tasks[0].SID {
				sessions++
			}
		}
	}
	if sessions < 1000 {
		t.Errorf("only %d tasks were in a session of their own: the histories show too little", sessions)
	}
}

func describe(tasks []image.Task) string {
	var b strings.Builder
	for _, t := range tasks {
		fmt.Fprintf(&b, "pid %d ppid %d pgid %d sid %d\n", t.PID, t.PPID, t.PGID, t.SID)
	}
	return b.String()
}

// history is what remains of a random program whose first process adopts orphans.
func history(rng *rand.Rand) []image.Task {
	type p struct {
		simTask
		dead bool // a zombie
	}
	all := []*p{{simTask: simTask{100, 1, 100, 50}}}
	if rng.IntN(2) == 0 {
		all[0].sid = 100
	}
	next := 101
	for range 5 + rng.IntN(40) {
		q := all[rng.IntN(len(all))]
		if q.dead {
			continue
		}
		switch rng.IntN(6) {
		case 0, 1, 2:
			all = append(all, &p{simTask: simTask{next, q.pid, q.pgid, q.sid}})
			next++
		case 3:
			leads := false
			for _, o := range all {
				leads = leads || o.pgid == q.pid
			}
			if !leads {
				q.sid, q.pgid = q.pid, q.pid
			}
		case 4:
			o := all[rng.IntN(len(all))]
			if q.sid != q.pid && o.sid == q.sid && !o.dead {
				q.pgid = o.pgid
				if rng.IntN(2) == 0 {
					q.pgid = q.pid
				}
			}
		case 5:
			if q == all[0] {
				continue
			}
			q.dead = true
			for _, o := range all {
				if o.ppid == q.pid {
					o.ppid = all[0].pid
				}
			}
			if rng.IntN(3) > 0 { // its parent waits for it
				for i, o := range all {
					if o == q {
						all = append(all[:i:i], all[i+1:]...)
						break
					}
				}
			}
		}
	}
	// Parents before their children, as an image has them.
	var out []image.Task
	var walk func(pid int)
	walk = func(pid int) {
		for _, o := range all {
			if o.ppid == pid {
				out = append(out, taskOf(int32(o.pid), int32(o.ppid), int32(o.pgid), int32(o.sid)))
				walk(o.pid)
			}
		}
	}
	walk(1)
	return out
}
