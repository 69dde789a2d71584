package kmem

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// ThreadState is what a thread that stands still alone could tell of itself.
type ThreadState struct {
	Comm      string
	Flags     uint32 // PF_* of linux/sched.h
	ClearTID  uint64 // see set_tid_address(2)
	PDeathSig uint32
	Slack     uint64 // of its timers, in ns
	AltStack  struct {
		SP, Size uint64
		Flags    uint32 // SS_* as it was set
	}
	Settings Settings
}

// Settings are the same for two threads that have the same credentials, securebits and keyrings, and the same settings of
// prctl(2) and arch_prctl(2) that are bits: no_new_privs, TSC, CPUID, speculation controls. Which bits those are depends on the
// kernel, so there are others among them.
type Settings struct {
	Creds                uint64 // address of its credentials
	Policy               uint64 // address of its NUMA policy; 0: it has the default
	ThreadBits, TaskBits uint64
}

// upids is how many struct upid of a struct pid are read: one for each level of pid namespaces.
const upids = 4

// ThreadStates reads the threads of a process that stands still, by their ids in its own pid namespace.
func (m *Memory) ThreadStates(pid int) (map[int]*ThreadState, error) {
	tasks, err := m.Threads(pid)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	const room = 16 // for the longest member
	type member struct {
		off uint64
		len int
	}
	of := func(name string, length int) member { return member{w.off("task_struct." + name), length} }
	members := []member{of("comm", room), of("flags", 4), of("clear_child_tid", 8), of("pdeath_signal", 4), of("timer_slack_ns", 8),
		of("sas_ss_sp", 8), of("sas_ss_size", 8), of("sas_ss_flags", 4), of("cred", 8), of("thread_info.flags", 8), of("atomic_flags", 8), of("thread_pid", 8)}
	if m.Has("task_struct.mempolicy") { // CONFIG_NUMA
		members = append(members, of("mempolicy", 8))
	}
	if w.err != nil {
		return nil, w.err
	}
	n := len(members)
	bytesOf := make([]byte, room*n*len(tasks))
	places := make([]Place, 0, n*len(tasks))
	for _, task := range tasks {
		for _, at := range members {
			places = append(places, Place{Addr: task + at.off, Bytes: bytesOf[room*len(places):][:at.len]})
		}
	}
	if err := m.readAll(places); err != nil {
		return nil, err
	}
	word := func(i, member int) uint64 { return binary.LittleEndian.Uint64(bytesOf[room*(n*i+member):]) }
	pids := make([]uint64, len(tasks))
	for i := range pids {
		pids[i] = word(i, 11)
	}
	ids, err := m.innerIDs(pids)
	if err != nil {
		return nil, err
	}
	out := make(map[int]*ThreadState, len(tasks))
	for i := range tasks {
		comm, _, _ := bytes.Cut(places[n*i].Bytes, []byte{0})
		half := func(member int) uint32 { return uint32(word(i, member)) }
		t := &ThreadState{Comm: string(comm), Flags: half(1), ClearTID: word(i, 2), PDeathSig: half(3), Slack: word(i, 4)}
		t.AltStack.SP, t.AltStack.Size, t.AltStack.Flags = word(i, 5), word(i, 6), half(7)
		t.Settings = Settings{Creds: word(i, 8), ThreadBits: word(i, 9), TaskBits: word(i, 10)}
		if n > 12 {
			t.Settings.Policy = word(i, 12)
		}
		out[ids[i]] = t
	}
	if len(out) != len(tasks) || out[pid] == nil {
		return nil, fmt.Errorf("process %d: its threads have other ids than here: %w", pid, unix.ESRCH)
	}
	return out, nil
}

// innerIDs reads the ids of what struct pids are of, each in its own pid namespace.
func (m *Memory) innerIDs(pids []uint64) ([]int, error) {
	w := walk{m: m}
	level, numbers := w.off("pid.level"), w.off("pid.numbers")
	if w.err != nil {
		return nil, w.err
	}
	places := make([]Place, len(pids))
	for i := range places {
		places[i] = Place{Addr: pids[i], Bytes: make([]byte, numbers+upids*upidSize)}
	}
	if err := m.readAll(places); err != nil {
		return nil, err
	}
	out := make([]int, len(pids))
	for i := range places {
		depth := uint64(binary.LittleEndian.Uint32(places[i].Bytes[level:]))
		if depth >= upids {
			return nil, fmt.Errorf("a pid namespace of level %d", depth)
		}
		out[i] = int(int32(binary.LittleEndian.Uint32(places[i].Bytes[numbers+depth*upidSize:])))
	}
	return out, nil
}

// ThreadBrief is what the kernel's memory tells of a thread that may run.
type ThreadBrief struct {
	Flags    uint32 // PF_* of linux/sched.h; those that say what sort of thread it is never change
	Children bool   // it has made processes that are there yet, or has got them from another
}

// ThreadBriefs reads the threads of a process that may run, by their ids in its own pid namespace. Those that come or end meanwhile may
// be missing. A process with more than so many is an error.
func (m *Memory) ThreadBriefs(pid, most int) (map[int]ThreadBrief, error) {
	tasks, err := m.threads(pid, most)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	flags, children, id := w.off("task_struct.flags"), w.off("task_struct.children"), w.off("task_struct.thread_pid")
	if w.err != nil {
		return nil, w.err
	}
	const n = 3
	words := make([]byte, n*8*len(tasks))
	places := make([]Place, 0, n*len(tasks))
	for _, task := range tasks {
		for _, off := range [n]uint64{flags, children, id} {
			places = append(places, Place{Addr: task + off, Bytes: words[8*len(places):][:8]})
		}
	}
	if err := m.readAll(places); err != nil {
		return nil, err
	}
	word := func(i, k int) uint64 { return binary.LittleEndian.Uint64(words[8*(n*i+k):]) }
	var pids []uint64
	var of []int
	for i := range tasks {
		if p := word(i, 2); p != 0 { // it has not ended
			pids, of = append(pids, p), append(of, i)
		}
	}
	ids, err := m.innerIDs(pids)
	if err != nil {
		return nil, err
	}
	out := make(map[int]ThreadBrief, len(tasks))
	for n, i := range of {
		out[ids[n]] = ThreadBrief{Flags: uint32(word(i, 0)), Children: word(i, 1) != tasks[i]+children}
	}
	return out, nil
}

// readAll is ReadEach of places that all have to be there.
func (m *Memory) readAll(all []Place) error {
	if err := m.ReadEach(all); err != nil {
		return err
	}
	for i := range all {
		if all[i].Err != nil {
			return all[i].Err
		}
	}
	return nil
}
