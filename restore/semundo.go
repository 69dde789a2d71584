package restore

import (
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"golang.org/x/sys/unix"
)

// makeUndo lets processes make the adjustments (SEM_UNDO) that they had. That makes them the last to use
// a semaphore: who was it before does so once more.
func (j *job) makeUndo(o *object, set *image.SemSet) error {
	touched := map[uint32]bool{}
	for _, u := range set.Undo {
		p := j.member(int(u.PID)) // it is one, or the image is not valid
		for _, ops := range sysv.Adjust(uint16(u.Num), uint16(set.Sems[u.Num].Value), int(u.Adj)) {
			if err := j.semop(p, o, ops); err != nil {
				return err
			}
		}
		touched[u.Num] = true
	}
	for num := range touched {
		s := set.Sems[num]
		if s.PID == 0 {
			continue
		}
		err := j.asUserOf(o, int(s.PID), func(p *proc) error { return j.semop(p, o, sysv.Touch(uint16(num), uint16(s.Value))) })
		if err != nil {
			return err
		}
	}
	return nil
}

// semop calls semop(2) in a process.
func (j *job) semop(p *proc, o *object, ops []sysv.SemOp) error {
	at, err := j.put(p, 0, sysv.Encode(ops))
	if err == nil {
		_, err = p.call("semop", unix.SYS_SEMOP, uint64(o.perm.ID), at, uint64(len(ops)))
	}
	return err
}
