package restore

import (
	"errors"
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// Files that SCM_RIGHTS does not carry (kind.Apart) a process fetches from us, when all others are in place: with our
// credentials it may.

// apart reports whether a file cannot be sent to processes.
func (j *job) apart(ref image.ObjRef) bool {
	_, ok := kind.ByName(j.m.Files[ref-1].Kind).(kind.Apart)
	return ok
}

// splitApart takes these out of a table.
func (j *job) splitApart(table []image.FD) (rest, apart []image.FD) {
	for _, fd := range table {
		if j.apart(fd.File) {
			apart = append(apart, fd)
		} else {
			rest = append(rest, fd)
		}
	}
	return rest, apart
}

// placeApart lets a process fetch them.
func (j *job) placeApart(p *proc, table, apart []image.FD) error {
	const spare = 2 // and the pidfd's
	highest := int(table[len(table)-1].Num)
	room, err := roomFor(p.pid, highest+1+spare)
	if err != nil {
		return err
	}
	if room <= highest+spare {
		return noRoom(p.pid, highest+1+spare, room)
	}
	placed := map[image.ObjRef]int32{}
	for _, fd := range apart {
		set := uint64(0)
		if fd.CloExec {
			set = unix.O_CLOEXEC
		}
		if have, ok := placed[fd.File]; ok {
			if _, err := p.call(fmt.Sprintf("place descriptor %d", fd.Num), unix.SYS_DUP3, uint64(have), uint64(fd.Num), set); err != nil {
				return err
			}
			continue
		}
		if err := j.fetch(p, fd, set); err != nil {
			return err
		}
		placed[fd.File] = fd.Num
	}
	return nil
}

// fetch lets a process fetch one file. Those with lower numbers are in place.
func (j *job) fetch(p *proc, fd image.FD, set uint64) error {
	ours, ok := j.ttys[fd.File]
	if !ok || ours < 0 {
		return fmt.Errorf("restore pid %d: descriptor %d is not open yet", p.pid, fd.Num)
	}
	num, err := kind.Lend(remoteProcess{j, p, p.pid}, ours)
	if err != nil {
		return fmt.Errorf("restore pid %d: descriptor %d: %w", p.pid, fd.Num, err)
	}
	label := fmt.Sprintf("place descriptor %d", fd.Num)
	if num == uint64(fd.Num) {
		if set == 0 {
			_, err = p.call(label, unix.SYS_FCNTL, num, unix.F_SETFD, 0)
		}
		return err
	}
	if _, err := p.call(label, unix.SYS_DUP3, num, uint64(fd.Num), set); err != nil {
		return err
	}
	_, err = p.call(label, unix.SYS_CLOSE, num)
	return err
}

// finishFile takes the late step of a file, in the thread that it is for.
func (j *job) finishFile(p *proc, u holding, f kind.Finisher, rec *image.File, num int) error {
	run := func() error { return f.Finish(rec, num, j.remote(p, u)) }
	t, ok := f.(kind.FinishThreader)
	if !ok {
		return run()
	}
	tid := int(t.FinishThread(rec, int32(p.pid)))
	for _, th := range p.threads[1:] {
		if th.TID == tid {
			return p.inThread(th, run)
		}
	}
	return run()
}

// inThread runs f while a thread other than the leader is the one that carries out remote calls.
func (p *proc) inThread(th *ptrace.Thread, f func() error) error {
	if err := p.rem.Use(th); err != nil {
		return fmt.Errorf("restore thread %d: %w", th.TID, err)
	}
	return errors.Join(f(), p.rem.Use(p.threads[0]))
}

// checkRingMaps wants an io_uring for every mapping of one.
func checkRingMaps(m *image.Manifest) error {
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.MM == 0 {
			continue
		}
		for k := range m.MMs[t.MM-1].VMAs {
			if v := &m.MMs[t.MM-1].VMAs[k]; v.Kind == image.VMARing && !kind.RingMapped(m.Files, t.PID, v.Start) {
				return &ImageError{int(t.PID), fmt.Sprintf("it maps an io_uring at %#x that is not in the image", v.Start)}
			}
		}
	}
	return nil
}
