package restore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"golang.org/x/sys/unix"
)

// Semaphore sets and message queues of System V are made when the processes are there and their memory stands, and
// filled by those who used them last. One that is still there and that nobody uses is replaced (policy ipc).

// object is a semaphore set or a message queue of the image.
type object struct {
	name  string // as package sysv calls it
	what  string
	perm  *image.IPCPerm
	there bool // it was there before
	made  bool // by us
}

func (o *object) String() string {
	return fmt.Sprintf("%s %d (key %#x)", o.what, o.perm.ID, uint32(o.perm.Key))
}

// found is an object that is there.
type found struct {
	sysv.Perm
	same bool    // of the same size
	pids []int32 // who used it last
	at   int64   // when
	wait sysv.Wait
}

// objects lists those of the image.
func (j *job) objects() []*object {
	if j.ipc != nil {
		return j.ipc
	}
	j.ipc = []*object{}
	for i := range j.m.SemSets {
		j.ipc = append(j.ipc, &object{name: "sem", what: "SysV semaphore set", perm: &j.m.SemSets[i].Perm})
	}
	for i := range j.m.MsgQueues {
		j.ipc = append(j.ipc, &object{name: "msg", what: "SysV message queue", perm: &j.m.MsgQueues[i].Perm})
	}
	return j.ipc
}

// checkIPC finds objects that are still there, or that others have under the same id or key.
func (j *job) checkIPC() error {
	if len(j.objects()) == 0 {
		return nil
	}
	there := map[string][]found{}
	sems, err := sysv.ReadSem()
	if err != nil {
		return err
	}
	for i := range sems {
		s := &sems[i]
		same := slices.ContainsFunc(j.m.SemSets, func(x image.SemSet) bool { return x.Perm.ID == s.ID && len(x.Sems) == s.N })
		var pids []int32
		if slices.ContainsFunc(j.m.SemSets, func(x image.SemSet) bool { return x.Perm.ID == s.ID }) {
			pids, _ = sysv.LastPIDs(s.ID, s.N) // or it has just been removed
		}
		there["sem"] = append(there["sem"], found{s.Perm, same, pids, max(s.OTime, s.CTime), sysv.Wait{ID: s.ID}})
	}
	msgs, err := sysv.ReadMsg()
	if err != nil {
		return err
	}
	for i := range msgs {
		q := &msgs[i]
		there["msg"] = append(there["msg"], found{q.Perm, true, []int32{int32(q.LSPID), int32(q.LRPID)}, q.At(), sysv.Wait{Queue: true, ID: q.ID}})
	}
	for _, o := range j.objects() {
		if err := j.checkObject(o, there[o.name]); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) checkObject(o *object, all []found) error {
	for i := range all {
		is := &all[i]
		remove := fmt.Sprintf("if nobody needs it any more, remove it (ipcrm -%c %d) and restore again", o.name[0], is.ID)
		switch {
		case is.ID != o.perm.ID && (o.perm.Key == 0 || is.Key != o.perm.Key):
			continue
		case is.ID != o.perm.ID:
			return &HostError{What: fmt.Sprintf("%v: number %d has its key now, made by uid %d", o, is.ID, is.CUID), Remedy: remove}
		case is.Key != o.perm.Key || is.CUID != o.perm.CUID || is.CGID != o.perm.CGID || !is.same:
			return &HostError{What: fmt.Sprintf("%v: there is another one with that id, with key %#x, made by uid %d", o, uint32(is.Key), is.CUID), Remedy: remove}
		}
		if pid := lastUser(is); pid != 0 {
			return &HostError{What: fmt.Sprintf("%v is still there, and pid %d uses it", o, pid), Remedy: "end that process and restore again"}
		}
		if j.env.Policy.Get("ipc") == "refuse" {
			return &HostError{What: fmt.Sprintf("%v is still there, and the policy ipc=refuse wants it left alone", o), Remedy: remove}
		}
		o.there = true
		j.warn("%v is still there; its content is that of the image again", o)
	}
	return nil
}

// lastUser returns a living process that used an object last, or waits in it, or 0.
func lastUser(is *found) int {
	for _, pid := range is.pids {
		if sysv.Lives(int(pid), is.at) {
			return int(pid)
		}
	}
	return sysv.Waiting(sysv.Numbers("/proc"))[is.wait]
}

// makeIPC makes and fills the objects, by remote calls of stubs.
func (j *job) makeIPC() error {
	for i, o := range j.objects() {
		if o.there {
			if err := sysv.Remove(o.name, o.perm.ID); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
				return fmt.Errorf("restore: %v: %w", o, err)
			}
		}
		var err error
		if o.name == "sem" {
			err = j.makeSem(o, &j.m.SemSets[i])
		} else {
			err = j.makeMsg(o, &j.m.MsgQueues[i-len(j.m.SemSets)])
		}
		if err != nil {
			return fmt.Errorf("restore: %v: %w", o, err)
		}
	}
	return nil
}

// get makes an object by a call of the root.
func (j *job) get(o *object, nr uintptr, args ...uint64) error {
	p := j.alive()[0]
	return j.withIDs(p, o.perm.CUID, o.perm.CGID, func() error {
		err := sysv.Make(o.name, o.what, o.perm.ID, func() (int32, error) {
			id, err := p.rem.Syscall(nr, args...)
			return int32(id), err
		}, func(id int32) error { return sysv.Remove(o.name, id) })
		o.made = err == nil
		return makeError(err, map[string]string{"sem": "kernel.sem", "msg": "kernel.msgmni"}[o.name])
	})
}

// permOf is what to set of an object.
func permOf(p *image.IPCPerm) *sysv.Perm {
	return &sysv.Perm{ID: p.ID, UID: p.UID, GID: p.GID, Mode: p.Mode}
}

// makeSem makes a semaphore set. Who sets the value of a semaphore is the last who changed it.
func (j *job) makeSem(o *object, set *image.SemSet) error {
	const exclusive = sysv.IPCCreat | sysv.IPCExcl
	if err := j.get(o, unix.SYS_SEMGET, uint64(uint32(o.perm.Key)), uint64(len(set.Sems)), exclusive|uint64(o.perm.Mode&0o777)); err != nil {
		return err
	}
	if set.Used {
		if err := j.useSem(o, set); err != nil {
			return err
		}
	}
	by := map[int32][]int{}
	var order []int32
	for i, s := range set.Sems {
		pid := s.PID
		if pid == 0 && s.Value == 0 {
			continue
		} else if pid == 0 { // of another pid namespace
			pid = int32(j.alive()[0].pid)
		}
		if by[pid] == nil {
			order = append(order, pid)
		}
		by[pid] = append(by[pid], i)
	}
	for _, pid := range order {
		err := j.asUserOf(o, int(pid), func(p *proc) error {
			for _, i := range by[pid] {
				if _, err := p.call("set a semaphore", unix.SYS_SEMCTL, uint64(o.perm.ID), uint64(i), sysv.SemSetVal, uint64(set.Sems[i].Value)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := j.makeUndo(o, set); err != nil {
		return err
	}
	return sysv.Set("sem", permOf(o.perm))
}

// useSem calls semop(2), so that sem_otime tells that somebody has; programs wait for that. The call waits for a
// semaphore to be 0, which all are yet.
func (j *job) useSem(o *object, set *image.SemSet) error {
	i := max(slices.IndexFunc(set.Sems, func(s image.Semaphore) bool { return s.PID != 0 }), 0)
	return j.semop(j.alive()[0], o, []sysv.SemOp{{Num: uint16(i)}})
}

// maxStandIns is how many processes are made for those that used objects last and are gone.
const maxStandIns = 64

// asUserOf is asMaker for who used an object last.
func (j *job) asUserOf(o *object, pid int, f func(p *proc) error) error {
	if j.member(pid) != nil || j.standIns < maxStandIns {
		if j.member(pid) == nil {
			j.standIns++
		}
		return j.asMaker(pid, o.String(), f)
	}
	j.warn("%v: it was used by many processes that are gone; the root stands for the rest of them", o)
	return f(j.alive()[0])
}

// makeMsg makes a message queue and sends its messages.
func (j *job) makeMsg(o *object, q *image.MsgQueue) error {
	var all []sysv.Message
	if q.Count > 0 {
		b, err := j.r.Blob(q.Blob)
		if err == nil {
			all, err = sysv.Unpack(b, int(q.Count))
		}
		if err != nil {
			return &ImageError{0, fmt.Sprintf("%v: %v", o, err)}
		}
	}
	const exclusive = sysv.IPCCreat | sysv.IPCExcl
	if err := j.get(o, unix.SYS_MSGGET, uint64(uint32(o.perm.Key)), exclusive|uint64(o.perm.Mode&0o777)); err != nil {
		return err
	}
	if err := sysv.SetQueue(permOf(o.perm), max(q.QBytes, 1)); err != nil {
		return &HostError{What: fmt.Sprintf("%v holds up to %d bytes", o, q.QBytes), Err: err, Remedy: "raise kernel.msgmnb, or restore with CAP_SYS_RESOURCE"}
	}
	if q.LRPID != 0 { // who sends and receives nothing was there too
		if err := j.passMessage(o, q); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		if err := j.asUserOf(o, int(q.LSPID), func(p *proc) error { return j.sendAll(p, o, all) }); err != nil {
			return err
		}
	}
	if q.QBytes == 0 {
		return sysv.SetQueue(permOf(o.perm), 0)
	}
	return nil
}

// passMessage lets an empty message through a queue, from who sent last to who received last.
func (j *job) passMessage(o *object, q *image.MsgQueue) error {
	err := j.asUserOf(o, int(q.LSPID), func(p *proc) error {
		at, err := j.put(p, 0, le.AppendUint64(nil, 1))
		if err == nil {
			_, err = p.call("msgsnd", unix.SYS_MSGSND, uint64(o.perm.ID), at, 0, sysv.IPCNoWait)
		}
		return err
	})
	if err != nil {
		return err
	}
	return j.asUserOf(o, int(q.LRPID), func(p *proc) error {
		at, err := j.put(p, 0, make([]byte, 8))
		if err == nil {
			_, err = p.call("msgrcv", unix.SYS_MSGRCV, uint64(o.perm.ID), at, 0, 0, sysv.IPCNoWait)
		}
		return err
	})
}

// sendAll sends messages, from memory that is mapped for that.
func (j *job) sendAll(p *proc, o *object, all []sysv.Message) error {
	most := 0
	for _, m := range all {
		most = max(most, len(m.Text))
	}
	length := (uint64(most) + 8 + pageSize - 1) &^ (pageSize - 1)
	at, err := p.call("mmap", unix.SYS_MMAP, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return err
	}
	for i, m := range all {
		b := append(le.AppendUint64(nil, uint64(m.Type)), m.Text...)
		if _, err := p.rem.Mem().WriteAt(b, int64(at)); err != nil {
			return fmt.Errorf("restore pid %d: write %d bytes at %#x: %w", p.pid, len(b), at, err)
		}
		_, err := p.rem.Syscall(unix.SYS_MSGSND, uint64(o.perm.ID), at, uint64(len(m.Text)), sysv.IPCNoWait)
		if errors.Is(err, unix.EINVAL) {
			return &HostError{What: fmt.Sprintf("%v has a message of %d bytes", o, len(m.Text)), Err: err, Remedy: "raise kernel.msgmax"}
		}
		if err != nil {
			return fmt.Errorf("send message %d of %d: %w", i+1, len(all), err)
		}
	}
	_, err = p.call("munmap", unix.SYS_MUNMAP, at, length)
	return err
}

// dropIPC removes what a failed restore has made.
func (j *job) dropIPC() {
	for _, o := range j.ipc {
		if !o.made {
			continue
		}
		if err := sysv.Remove(o.name, o.perm.ID); err != nil {
			j.log("giving up: %v", err)
		}
	}
}

// exceedsIPC is exceedsSysV for semaphore sets and message queues.
func exceedsIPC(m *image.Manifest, uid uint32, groups []uint32) string {
	var perms []*image.IPCPerm
	for i := range m.SemSets {
		perms = append(perms, &m.SemSets[i].Perm)
	}
	for i := range m.MsgQueues {
		perms = append(perms, &m.MsgQueues[i].Perm)
	}
	for _, p := range perms {
		if p.UID != uid || p.CUID != uid || !slices.Contains(groups, p.GID) || !slices.Contains(groups, p.CGID) {
			return fmt.Sprintf("the semaphore set or message queue %d belongs to %d:%d and was made by %d:%d", p.ID, p.UID, p.GID, p.CUID, p.CGID)
		}
	}
	return ""
}
