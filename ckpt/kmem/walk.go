package kmem

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// File is the address of the struct file behind a descriptor of ours.
func (m *Memory) File(fd int) (uint64, error) {
	task, err := m.Task()
	if err != nil {
		return 0, err
	}
	w := walk{m: m}
	table := w.get(w.get(task, "task_struct.files"), "files_struct.fdt")
	file := uint64(0)
	if fd >= 0 && uint64(fd) < w.get(table, "fdtable.max_fds") {
		file = w.word(w.get(table, "fdtable.fd") + 8*uint64(fd))
	}
	if w.err == nil && file == 0 {
		return 0, fmt.Errorf("descriptor %d of ours: %w", fd, unix.EBADF)
	}
	return file, w.err
}

// Threads are the addresses of the struct task_struct of all threads of a process, those that the kernel runs in it among
// them.
func (m *Memory) Threads(pid int) ([]uint64, error) { return m.threads(pid, listLimit) }

func (m *Memory) threads(pid, most int) ([]uint64, error) {
	leader, err := m.leader(pid)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	head := w.get(leader, "task_struct.signal") + w.off("signal_struct.thread_head")
	return w.list(head, w.off("task_struct.thread_node"), most), w.err
}

// leader is the address of the struct task_struct of the first thread of a process.
func (m *Memory) leader(pid int) (uint64, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("pidfd_open of %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	file, err := m.File(pidfd)
	if err != nil {
		return 0, err
	}
	w := walk{m: m}
	id := w.get(w.get(file, "file.f_inode"), "inode.i_private") // pidfs, Linux 6.9
	if w.err == nil && id == 0 {
		return 0, fmt.Errorf("a pidfd leads to no process in this kernel: Linux 6.9 or newer is needed")
	}
	const tgid = 1 // PIDTYPE_TGID
	first := w.word(id + w.off("pid.tasks") + 8*tgid)
	leader := first - w.off("task_struct.pid_links") - 16*tgid
	if w.err == nil && first == 0 {
		return 0, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	return leader, w.err
}

// upidSize is the size of struct upid: nr and ns.
const upidSize = 16

// PID is the id of a task in its own pid namespace.
func (m *Memory) PID(task uint64) (int, error) {
	w := walk{m: m}
	id := w.get(task, "task_struct.thread_pid")
	level := w.get(id, "pid.level")
	var b [4]byte
	if w.err == nil {
		w.err = m.Read(id+w.off("pid.numbers")+upidSize*level, b[:])
	}
	return int(int32(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)), w.err
}

// listLimit bounds the walk along a list: what changes meanwhile may lead in a circle.
const listLimit = 1 << 18

// Chain counts what hangs on a pointer by pointers that stand first.
func (m *Memory) Chain(first uint64) (n int, err error) {
	for at := first; at != 0; n++ {
		if n == listLimit {
			return n, fmt.Errorf("a list in the kernel has no end")
		}
		if at, err = m.Word(at); err != nil {
			return n, err
		}
	}
	return n, nil
}

// walk follows pointers until something fails.
type walk struct {
	m   *Memory
	err error
}

func (w *walk) get(addr uint64, member string) (v uint64) {
	if w.err == nil {
		v, w.err = w.m.Get(addr, member)
	}
	return v
}

func (w *walk) word(addr uint64) (v uint64) {
	if w.err == nil {
		v, w.err = w.m.Word(addr)
	}
	return v
}

func (w *walk) off(member string) (v uint64) {
	if w.err == nil {
		v, w.err = w.m.Offset(member)
	}
	return v
}

func (w *walk) list(head, off uint64, most int) (all []uint64) {
	for at := w.word(head); w.err == nil && at != head; at = w.word(at) {
		if len(all) == most {
			w.err = fmt.Errorf("a list in the kernel has no end")
		}
		all = append(all, at-off)
	}
	return all
}
