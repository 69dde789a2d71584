package restore

import (
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// hostIDs is what the planning of a tree asks about the machine.
type hostIDs struct {
	SID   int                // our own session, which the seed process shares
	PGID  int                // our own process group
	Taken func(pid int) bool // in use as a process id, process group or session
}

// stepOp is what one step of a plan does.
type stepOp uint8

const (
	stepClone   stepOp = iota // make Node as a child of From
	stepSibling               // make Node as a child of From's parent (CLONE_PARENT), in From's session
	stepOrphan                // make Node as a grandchild of From, whose parent ends so that Heir inherits it
	stepSetsid                // Node calls setsid(2)
	stepGroup                 // Node calls setpgid(0, id of Group)
	stepEnd                   // placeholder Node ends without a trace
)

// step is one step of a plan. Its processes are indexes into plan.nodes.
type step struct {
	Op    stepOp
	Node  int
	From  int
	Heir  int
	Group int
}

// node is a process of a plan: node 0 is the seed, node i+1 is task i, and behind them
// stand placeholders: processes that only lend their id to a session or a process group
// whose leader had ended before the checkpoint.
type node struct {
	PID        int // 0: any that is free and not needed
	Task       int // -1: the seed or a placeholder
	Parent     int // node
	ExitSignal int
}

// seed is the node of the process that everything descends from while it is restored.
const seed = 0

// plan is the order in which the processes of a tree are made, so that each has its
// parent, session and process group.
type plan struct {
	nodes    []node
	steps    []step
	warnings []string
}

// planner holds what planTree needs while it plans.
type planner struct {
	plan
	tasks   []image.Task
	host    hostIDs
	byPID   map[int]int   // node of a task
	kids    map[int][]int // nodes of the children
	birth   []int         // by node: session a leader has to be born in; 0: any
	session []int         // by node: session it is in at this point of the plan
	made    []bool
	leader  map[int]int // placeholder that leads a session; there is none while it is not made
	home    map[int]int // node below which the placeholder of a session is made
	late    []int       // tasks that have to wait for the leader of their session
}

// planTree plans how to make the tasks. A task gets its session by birth, as setsid(2) makes
// only sessions of one's own, so:
//
//  1. A session leader forks the children that belong to an older session before it calls setsid.
//  2. A session whose leader is not in the image gets a placeholder as leader. It has the
//     old id if that is free; otherwise it has another one, and a warning says so.
//  3. A task that was adopted (its parent is not in its session and never was) is forked by
//     a member of its session as a sibling of that, or as an orphan that the parent adopts.
//  4. Process groups come last: the leaders, then placeholders for leaders that are gone, then the members.
func planTree(tasks []image.Task, host hostIDs) (*plan, error) {
	p := &planner{tasks: tasks, host: host, byPID: map[int]int{}, kids: map[int][]int{}, leader: map[int]int{}, home: map[int]int{}}
	p.add(node{Task: -1, Parent: -1, ExitSignal: int(unix.SIGCHLD)})
	p.session[seed], p.made[seed] = host.SID, true
	for i := range tasks {
		if err := p.addTask(i); err != nil {
			return nil, err
		}
	}
	if err := p.findBirths(); err != nil {
		return nil, err
	}
	p.findHomes()
	p.create(1)
	if err := p.createLate(); err != nil {
		return nil, err
	}
	if err := p.groups(); err != nil {
		return nil, err
	}
	for n := len(tasks) + 1; n < len(p.nodes); n++ {
		p.steps = append(p.steps, step{Op: stepEnd, Node: n})
	}
	return &p.plan, nil
}

func (p *planner) add(n node) int {
	p.nodes = append(p.nodes, n)
	p.session = append(p.session, 0)
	p.birth = append(p.birth, 0)
	p.made = append(p.made, false)
	return len(p.nodes) - 1
}

func (p *planner) addTask(i int) error {
	t := &p.tasks[i]
	parent := seed
	if i > 0 {
		var ok bool
		if parent, ok = p.byPID[int(t.PPID)]; !ok {
			return &ImageError{int(t.PID), fmt.Sprintf("its parent %d does not stand before it", t.PPID)}
		}
	}
	n := p.add(node{PID: int(t.PID), Task: i, Parent: parent, ExitSignal: int(t.ExitSignal)})
	p.byPID[int(t.PID)] = n
	p.kids[parent] = append(p.kids[parent], n)
	return nil
}

func (p *planner) sid(n int) int {
	if n == seed {
		return p.host.SID
	}
	return int(p.tasks[n-1].SID)
}

func (p *planner) leads(n int) bool { return n != seed && p.sid(n) == p.nodes[n].PID }

// need is the session a task has to be born in; 0 if it does not matter.
func (p *planner) need(n int) int {
	if p.leads(n) {
		return p.birth[n]
	}
	return p.sid(n)
}

// below reports whether n descends from top.
func (p *planner) below(n, top int) bool {
	for n = p.nodes[n].Parent; n >= 0; n = p.nodes[n].Parent {
		if n == top {
			return true
		}
	}
	return false
}

// findBirths finds out which session leaders forked children before they were leaders.
func (p *planner) findBirths() error {
	for n := len(p.tasks); n >= 1; n-- { // children stand behind their parents
		if !p.leads(n) {
			continue
		}
		for _, c := range p.kids[n] {
			s := p.need(c)
			if s == 0 || s == p.nodes[n].PID || !p.inherited(n, s) {
				continue
			}
			if p.birth[n] != 0 && p.birth[n] != s {
				return &ImageError{p.nodes[n].PID, fmt.Sprintf("its children belong to the sessions %d and %d, both older than its own", p.birth[n], s)}
			}
			p.birth[n] = s
		}
	}
	return nil
}

// inherited reports whether a child of n in session s has it from the time before n led a
// session itself, as opposed to having been adopted by n.
func (p *planner) inherited(n, s int) bool {
	if l, ok := p.byPID[s]; ok {
		return !p.below(l, n)
	}
	if s == p.host.SID {
		return true
	}
	for m := 1; m <= len(p.tasks); m++ {
		if p.sid(m) == s && !p.below(m, n) {
			return true
		}
	}
	return false
}

// findHomes chooses where the placeholders of sessions without a leader are made: beside the
// deepest of the tasks that need one, so that the others can inherit from there.
func (p *planner) findHomes() {
	depth := func(n int) (d int) {
		for ; n > seed; n = p.nodes[n].Parent {
			d++
		}
		return d
	}
	for n := 1; n <= len(p.tasks); n++ {
		s := p.need(n)
		if _, led := p.byPID[s]; led || s == 0 || s == p.host.SID {
			continue
		}
		parent := p.nodes[n].Parent
		if p.sid(parent) == s || parent != seed && p.birth[parent] == s {
			continue
		}
		if h, ok := p.home[s]; !ok || depth(parent) > depth(h) {
			p.home[s] = parent
		}
	}
}

// create plans a task and everything below it.
func (p *planner) create(n int) {
	if !p.birthOf(n) {
		p.late = append(p.late, n)
		return
	}
	var after []int
	for _, c := range p.kids[n] {
		if p.leads(n) && p.birth[n] != 0 && p.need(c) == p.birth[n] {
			p.create(c)
		} else {
			after = append(after, c)
		}
	}
	if p.leads(n) {
		p.steps = append(p.steps, step{Op: stepSetsid, Node: n})
		p.session[n] = p.nodes[n].PID
	}
	for _, c := range after {
		p.create(c)
	}
}

// createLate plans the tasks that had to wait for others.
func (p *planner) createLate() error {
	for len(p.late) > 0 {
		wait := p.late
		p.late = nil
		for _, n := range wait {
			p.create(n)
		}
		if len(p.late) >= len(wait) && slices.Equal(p.late, wait) {
			n := wait[0]
			return &ImageError{p.nodes[n].PID, fmt.Sprintf("no process can fork it into session %d under its parent %d", p.need(n), p.nodes[p.nodes[n].Parent].PID)}
		}
	}
	return nil
}

// birthOf plans the birth of one task; false means that its session does not exist yet.
func (p *planner) birthOf(n int) bool {
	s, parent := p.need(n), p.nodes[n].Parent
	if s == 0 || p.session[parent] == s {
		p.born(step{Op: stepClone, Node: n, From: parent}, p.session[parent])
		return true
	}
	if h, ok := p.home[s]; ok && h == parent && p.leader[s] == 0 {
		p.placeLeader(s, parent)
	}
	best := -1
	for m := range p.nodes {
		if !p.made[m] || p.session[m] != s || m == seed {
			continue
		}
		if p.nodes[m].Parent == parent && p.nodes[m].ExitSignal == int(unix.SIGCHLD) {
			p.born(step{Op: stepSibling, Node: n, From: m}, s)
			return true
		}
		if best < 0 && p.below(m, parent) {
			best = m
		}
	}
	if best < 0 {
		return false
	}
	p.born(step{Op: stepOrphan, Node: n, From: best, Heir: parent}, s)
	return true
}

func (p *planner) born(st step, session int) {
	p.steps = append(p.steps, st)
	p.made[st.Node] = true
	p.session[st.Node] = session
}

// placeLeader plans a placeholder that leads session s.
func (p *planner) placeLeader(s, parent int) {
	pid := s
	if p.host.Taken(s) {
		pid = 0
		p.warnings = append(p.warnings, fmt.Sprintf("session %d is led by a process that is not in the image, and that number is in use: its processes are in a new session without a terminal", s))
	}
	n := p.add(node{PID: pid, Task: -1, Parent: parent, ExitSignal: int(unix.SIGCHLD)})
	p.leader[s] = n
	p.born(step{Op: stepClone, Node: n, From: parent}, s)
	p.steps = append(p.steps, step{Op: stepSetsid, Node: n})
}
