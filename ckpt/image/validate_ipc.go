package image

import "fmt"

const (
	maxSems      = 32000   // SEMMSL
	maxSemaphore = 32767   // SEMVMX
	maxMessages  = 1 << 20 // a message costs the kernel some 50 bytes
)

// validIPC checks semaphore sets and message queues.
func (m *Manifest) validIPC() error {
	var perms []*IPCPerm
	for i := range m.SemSets {
		s := &m.SemSets[i]
		if err := s.validate(); err != nil {
			return at(err, "sem_sets[%d]", i)
		}
		if err := s.undo(m.Tasks); err != nil {
			return at(err, "sem_sets[%d]", i)
		}
		perms = append(perms, &s.Perm)
	}
	if err := distinct("sem_sets", perms); err != nil {
		return err
	}
	perms = nil
	for i := range m.MsgQueues {
		q := &m.MsgQueues[i]
		if err := q.validate(len(m.Blobs)); err != nil {
			return at(err, "msg_queues[%d]", i)
		}
		perms = append(perms, &q.Perm)
	}
	return distinct("msg_queues", perms)
}

// distinct checks that no id and no key is there twice.
func distinct(field string, all []*IPCPerm) error {
	ids, keys := map[int32]bool{}, map[int32]bool{}
	for i, p := range all {
		switch {
		case ids[p.ID]:
			return at(bad("perm.id", "%d is there twice", p.ID), "%s[%d]", field, i)
		case p.Key != 0 && keys[p.Key]:
			return at(bad("perm.key", "%#x is there twice", uint32(p.Key)), "%s[%d]", field, i)
		}
		ids[p.ID], keys[p.Key] = true, true
	}
	return nil
}

func (p *IPCPerm) validate() error {
	if p.Mode&^maxMode != 0 {
		return bad("perm.mode", "is %#o", p.Mode)
	}
	return within("perm.id", int64(p.ID), 0, 1<<31-1)
}

func (s *SemSet) validate() error {
	if err := first(s.Perm.validate(), within("sems", int64(len(s.Sems)), 1, maxSems)); err != nil {
		return err
	}
	for i, sem := range s.Sems {
		field := fmt.Sprintf("sems[%d]", i)
		err := first(within(field+".value", int64(sem.Value), 0, maxSemaphore), within(field+".pid", int64(sem.PID), 0, maxPID))
		if err != nil {
			return err
		}
	}
	return nil
}

// undo checks adjustments: each is of a living task, and there is one for a semaphore.
func (s *SemSet) undo(tasks []Task) error {
	alive := map[int32]bool{}
	for i := range tasks {
		alive[tasks[i].PID] = tasks[i].State != TaskZombie
	}
	seen := map[SemUndo]bool{}
	for i, u := range s.Undo {
		key := SemUndo{PID: u.PID, Num: u.Num}
		field := fmt.Sprintf("undo[%d]", i)
		switch {
		case !alive[u.PID]:
			return bad(field+".pid", "%d is no task that lives", u.PID)
		case u.Num >= uint32(len(s.Sems)):
			return bad(field+".num", "is %d of %d semaphores", u.Num, len(s.Sems))
		case u.Adj == 0 || u.Adj < -maxSemaphore-1 || u.Adj > maxSemaphore:
			return bad(field+".adj", "is %d", u.Adj)
		case seen[key]:
			return bad(field, "is there twice")
		}
		seen[key] = true
	}
	return nil
}

func (q *MsgQueue) validate(blobs int) error {
	err := first(
		q.Perm.validate(),
		within("count", int64(q.Count), 0, maxMessages),
		optional("blob", q.Blob, blobs),
		within("lspid", int64(q.LSPID), 0, maxPID),
		within("lrpid", int64(q.LRPID), 0, maxPID),
	)
	if err == nil && (q.Blob != 0) != (q.Count != 0) {
		err = bad("blob", "is %d, and there are %d messages", q.Blob, q.Count)
	}
	if err == nil && q.QBytes > 1<<31-1 {
		err = bad("qbytes", "is %d", q.QBytes)
	}
	return err
}

const (
	maxPolicy   = 6       // MPOL_WEIGHTED_INTERLEAVE
	policyFlags = 7 << 13 // MPOL_F_NUMA_BALANCING, MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES
	maxNodes    = 128     // bytes
)

// validate checks a NUMA policy; nil is the default.
func (p *MemPolicy) validate(field string) error {
	switch {
	case p == nil:
		return nil
	case p.Mode&^policyFlags == 0 || p.Mode&^policyFlags > maxPolicy:
		return bad(field, "has the mode %#x", p.Mode)
	case len(p.Nodes) > maxNodes:
		return bad(field, "has nodes in %d bytes", len(p.Nodes))
	}
	return nil
}
