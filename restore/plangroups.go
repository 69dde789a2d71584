package restore

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// groups plans the process groups. A task can only join a group that exists in its own
// session, so the groups come into being before anybody joins, and a leader that has gone
// to another group itself goes last.
func (p *planner) groups() error {
	members := map[int][]int{}
	var order []int
	for n := 1; n <= len(p.tasks); n++ {
		g := int(p.tasks[n-1].PGID)
		if p.leads(n) {
			if g != p.nodes[n].PID {
				return &ImageError{p.nodes[n].PID, fmt.Sprintf("it leads a session but is in process group %d", g)}
			}
			continue // setsid made the group
		}
		if members[g] == nil {
			order = append(order, g)
		}
		members[g] = append(members[g], n)
	}
	group := map[int]int{} // node whose id the group has
	for _, g := range order {
		n, err := p.groupLeader(g, members[g])
		if err != nil {
			return err
		}
		group[g] = n
	}
	for pass := range 2 {
		for _, g := range order {
			for _, n := range members[g] {
				moved := members[p.nodes[n].PID] != nil && p.nodes[n].PID != g
				if moved == (pass == 1) && n != group[g] {
					p.steps = append(p.steps, step{Op: stepGroup, Node: n, Group: group[g]})
				}
			}
		}
	}
	return nil
}

// groupLeader plans that group g exists and returns the node whose id it has.
func (p *planner) groupLeader(g int, members []int) (int, error) {
	first := members[0]
	session := p.session[first]
	if n, ok := p.byPID[g]; ok {
		if p.session[n] != session {
			return 0, &ImageError{p.nodes[first].PID, fmt.Sprintf("its process group %d is in another session", g)}
		}
		if !p.leads(n) {
			p.steps = append(p.steps, step{Op: stepGroup, Node: n, Group: n})
		}
		return n, nil
	}
	if n, ok := p.leader[g]; ok && p.session[n] == session {
		return n, nil // a placeholder that leads the session leads the group too
	}
	if g == p.host.PGID && session == p.host.SID {
		return seed, nil
	}
	if !p.host.Taken(g) {
		n := p.add(node{PID: g, Task: -1, Parent: first, ExitSignal: int(unix.SIGCHLD)})
		p.born(step{Op: stepClone, Node: n, From: first}, session)
		p.steps = append(p.steps, step{Op: stepGroup, Node: n, Group: n})
		return n, nil
	}
	p.warnings = append(p.warnings, fmt.Sprintf("process group %d is led by a process that is not in the image, and that number is in use: its processes are in group %d", g, p.nodes[first].PID))
	p.steps = append(p.steps, step{Op: stepGroup, Node: first, Group: first})
	return first, nil
}
