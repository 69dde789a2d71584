package image_test

import (
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// Rules of Validate about objects of System V and NUMA policies, each broken once.
func TestValidateIPC(t *testing.T) {
	type M = image.Manifest
	anon := func(m *M) *image.VMA { return &m.MMs[0].VMAs[1] }
	shm := func(m *M) *image.Segment {
		m.Segments[0].SysV = &image.SysVShm{Key: 5, Made: 5, Size: uint64(m.Segments[0].Size)}
		return &m.Segments[0]
	}
	sem := func(id, key int32) image.SemSet {
		return image.SemSet{Perm: image.IPCPerm{ID: id, Key: key}, Sems: make([]image.Semaphore, 2)}
	}
	undo := func(all ...image.SemUndo) image.SemSet {
		s := sem(1, 0)
		s.Undo = all
		return s
	}
	for _, c := range []struct {
		path  string
		spoil func(m *M)
	}{
		{"segments[0].sysv.id", func(m *M) { shm(m).SysV.ID = -1 }},
		{"segments[0].sysv", func(m *M) { shm(m).Memfd = true }},
		{"segments[0].sysv.size", func(m *M) { shm(m).SysV.Size = 0 }},
		{"segments[0].sysv.size", func(m *M) { shm(m).SysV.Size = 1 << 63 }},
		{"segments[0].sysv.size", func(m *M) { shm(m).SysV.Size -= 4096 }},
		{"segments[0].sysv.mode", func(m *M) { shm(m).SysV.Mode = 0o1600 }},
		{"segments[0].sysv.key", func(m *M) { s := shm(m).SysV; s.Dest = true }},
		{"segments[0].sysv.made", func(m *M) { shm(m).SysV.Made = 6 }},
		{"segments[0].sysv.cpid", func(m *M) { shm(m).SysV.CPID = -1 }},
		{"segments[0].sysv.lpid", func(m *M) { shm(m).SysV.LPID = 1 << 30 }},
		{"segments[1].sysv.id", func(m *M) { m.Segments = append(m.Segments, *shm(m)) }},
		{"segments[1].sysv.key", func(m *M) {
			s := *shm(m)
			v := *s.SysV
			v.ID++
			s.SysV = &v
			m.Segments = append(m.Segments, s)
		}},
		{"mms[0].vmas[2].flags", func(m *M) { shm(m); m.MMs[0].VMAs[2].Flags = 2 }},
		{"mms[0].vmas[2].offset", func(m *M) { shm(m); m.MMs[0].VMAs[2].Offset = 4096 }},
		{"sem_sets[0].perm.id", func(m *M) { m.SemSets = []image.SemSet{sem(-1, 0)} }},
		{"sem_sets[1].perm.id", func(m *M) { m.SemSets = []image.SemSet{sem(1, 0), sem(1, 0)} }},
		{"sem_sets[1].perm.key", func(m *M) { m.SemSets = []image.SemSet{sem(1, 7), sem(2, 7)} }},
		{"sem_sets[0].perm.mode", func(m *M) { s := sem(1, 0); s.Perm.Mode = 0o4000; m.SemSets = []image.SemSet{s} }},
		{"sem_sets[0].sems", func(m *M) { m.SemSets = []image.SemSet{{}} }},
		{"sem_sets[0].sems", func(m *M) { m.SemSets = []image.SemSet{{Sems: make([]image.Semaphore, 32001)}} }},
		{"sem_sets[0].sems[0].value", func(m *M) { s := sem(1, 0); s.Sems[0].Value = 32768; m.SemSets = []image.SemSet{s} }},
		{"sem_sets[0].sems[0].pid", func(m *M) { s := sem(1, 0); s.Sems[0].PID = -1; m.SemSets = []image.SemSet{s} }},
		{"sem_sets[0].undo[0].pid", func(m *M) { m.SemSets = []image.SemSet{undo(image.SemUndo{PID: 7, Adj: 1})} }},
		{"sem_sets[0].undo[0].pid", func(m *M) { m.SemSets = []image.SemSet{undo(image.SemUndo{PID: 1002, Adj: 1})} }},
		{"sem_sets[0].undo[0].num", func(m *M) { m.SemSets = []image.SemSet{undo(image.SemUndo{PID: 1000, Num: 2, Adj: 1})} }},
		{"sem_sets[0].undo[0].adj", func(m *M) { m.SemSets = []image.SemSet{undo(image.SemUndo{PID: 1000})} }},
		{"sem_sets[0].undo[0].adj", func(m *M) { m.SemSets = []image.SemSet{undo(image.SemUndo{PID: 1000, Adj: -32769})} }},
		{"sem_sets[0].undo[1]", func(m *M) {
			m.SemSets = []image.SemSet{undo(image.SemUndo{PID: 1000, Adj: 1}, image.SemUndo{PID: 1000, Adj: 2})}
		}},
		{"msg_queues[0].perm.id", func(m *M) { m.MsgQueues = []image.MsgQueue{{Perm: image.IPCPerm{ID: -1}}} }},
		{"msg_queues[1].perm.id", func(m *M) { m.MsgQueues = make([]image.MsgQueue, 2) }},
		{"msg_queues[0].count", func(m *M) { m.MsgQueues = []image.MsgQueue{{Count: 1 << 21, Blob: 1}} }},
		{"msg_queues[0].blob", func(m *M) { m.MsgQueues = []image.MsgQueue{{Count: 1}} }},
		{"msg_queues[0].blob", func(m *M) { m.MsgQueues = []image.MsgQueue{{Count: 1, Blob: 3}} }},
		{"msg_queues[0].qbytes", func(m *M) { m.MsgQueues = []image.MsgQueue{{QBytes: 1 << 31}} }},
		{"msg_queues[0].lspid", func(m *M) { m.MsgQueues = []image.MsgQueue{{LSPID: -1}} }},
		{"msg_queues[0].lrpid", func(m *M) { m.MsgQueues = []image.MsgQueue{{LRPID: 1 << 30}} }},
		{"tasks[0].threads[1].mem_policy", func(m *M) { m.Tasks[0].Threads[1].MemPolicy = &image.MemPolicy{} }},
		{"tasks[0].threads[1].mem_policy", func(m *M) { m.Tasks[0].Threads[1].MemPolicy = &image.MemPolicy{Mode: 7} }},
		{"mms[0].vmas[1].mem_policy", func(m *M) { anon(m).MemPolicy = &image.MemPolicy{Mode: 1 << 16} }},
		{"mms[0].vmas[1].mem_policy", func(m *M) { anon(m).MemPolicy = &image.MemPolicy{Mode: 2, Nodes: make([]byte, 129)} }},
	} {
		spoiled(t, c.path, c.spoil)
	}
}
