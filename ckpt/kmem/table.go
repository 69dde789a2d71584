package kmem

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// Descriptor is a descriptor of a process, with what /proc/PID/fdinfo tells of it.
type Descriptor struct {
	File    uint64 // address of the struct file; 0: the number is free
	CloExec bool
	Flags   uint32 // f_flags
	Pos     int64
	MntID   int
	// Mount and Name are addresses of what the file was opened by (f_path): the same for two that are open by the very same name.
	Mount, Name uint64
	// Plain says that fdinfo has no more lines than these: the file is of no kind that adds some, and nobody ever had a
	// lock on it. A socket is plain by this, whatever its family adds.
	Plain bool
	// Unowned says that nobody gets signals of it, and that nobody has named one for that (F_SETSIG).
	Unowned bool
}

// mostDescriptors bounds a table that is read.
const mostDescriptors = 1 << 20

// Numbers lists the descriptors of a process that stands still. To list them in /proc makes a directory entry of each.
func (m *Memory) Numbers(pid int) (all []int, err error) {
	leader, err := m.leader(pid)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	table := w.get(w.get(leader, "task_struct.files"), "files_struct.fdt")
	open := m.bits(&w, w.get(table, "fdtable.open_fds"), w.get(table, "fdtable.max_fds"))
	for i, word := range open {
		for ; word != 0; word &= word - 1 {
			all = append(all, 64*i+bits.TrailingZeros64(word))
		}
	}
	return all, w.err
}

// Descriptors reads the descriptor table of a process that stands still. It has an entry for each number up to the
// highest.
func (m *Memory) Descriptors(pid int) ([]Descriptor, error) {
	leader, err := m.leader(pid)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	table := w.get(w.get(leader, "task_struct.files"), "files_struct.fdt")
	n := w.get(table, "fdtable.max_fds")
	open := m.bits(&w, w.get(table, "fdtable.open_fds"), n)
	if w.err != nil {
		return nil, w.err
	}
	all := make([]Descriptor, highest(open))
	cloexec := m.bits(&w, w.get(table, "fdtable.close_on_exec"), n)
	pointers := make([]byte, 8*len(all))
	if first := w.get(table, "fdtable.fd"); w.err == nil && len(all) > 0 {
		w.err = m.readLong(first, pointers)
	}
	if w.err != nil {
		return nil, w.err
	}
	for i := range all {
		all[i].File = binary.LittleEndian.Uint64(pointers[8*i:])
		all[i].CloExec = cloexec[i/64]>>(i%64)&1 != 0
	}
	return all, m.describe(all)
}

// bits reads a bitmap of n bits.
func (m *Memory) bits(w *walk, addr, n uint64) []uint64 {
	if w.err == nil && n > mostDescriptors {
		w.err = fmt.Errorf("a descriptor table for %d", n)
	}
	if w.err != nil {
		return nil
	}
	out, b := make([]uint64, (n+63)/64), make([]byte, (n+63)/64*8)
	w.err = m.readLong(addr, b)
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return out
}

// highest is one more than the number of the last bit that is set.
func highest(words []uint64) int {
	for i := len(words) - 1; i >= 0; i-- {
		if words[i] != 0 {
			return 64*i + bits.Len64(words[i])
		}
	}
	return 0
}

// readLong is Read of more than one call should have.
func (m *Memory) readLong(addr uint64, b []byte) error {
	var all []Place
	for len(b) > 0 {
		n := min(len(b), maxRead)
		all = append(all, Place{Addr: addr, Bytes: b[:n]})
		addr, b = addr+uint64(n), b[n:]
	}
	return m.readAll(all)
}

// describe reads what the struct file of each tells.
func (m *Memory) describe(all []Descriptor) error {
	size, err := m.types.bytes("file")
	if err != nil {
		return err
	}
	w := walk{m: m}
	flags, pos, inode, ops := w.off("file.f_flags"), w.off("file.f_pos"), w.off("file.f_inode"), w.off("file.f_op")
	mnt, dentry := w.off("file.f_path.mnt"), w.off("file.f_path.dentry")
	locks, show := w.off("inode.i_flctx"), w.off("file_operations.show_fdinfo")
	owner, byPointer := m.ownerOffset(&w)
	inMount, id := w.off("mount.mnt"), w.off("mount.mnt_id")
	if w.err != nil {
		return w.err
	}
	files, at := make([]Place, 0, len(all)), make([]int, 0, len(all))
	room := make([]byte, uint64(len(all))*(size+3*8)) // in one piece: there may be very many
	take := func(n uint64) []byte {
		b := room[:n:n]
		room = room[n:]
		return b
	}
	for i := range all {
		if all[i].File != 0 {
			files, at = append(files, Place{Addr: all[i].File, Bytes: take(size)}), append(at, i)
		}
	}
	if err := m.readAll(files); err != nil {
		return err
	}
	le := binary.LittleEndian
	more := places{at: make(map[uint64]int, len(files)), bytes: room}
	for i := range files {
		b := files[i].Bytes
		d := &all[at[i]]
		d.Flags, d.Pos = le.Uint32(b[flags:]), int64(le.Uint64(b[pos:]))
		d.Mount, d.Name = le.Uint64(b[mnt:]), le.Uint64(b[dentry:])
		d.Unowned = byPointer && le.Uint64(b[owner:]) == 0
		for _, addr := range []uint64{le.Uint64(b[inode:]) + locks, le.Uint64(b[ops:]) + show, d.Mount - inMount + id} {
			more.add(addr)
		}
	}
	if err := m.ReadEach(more.all); err != nil {
		return err
	}
	socket, err := m.socketShow(show)
	if err != nil {
		return err
	}
	for i := range files {
		b := files[i].Bytes
		d := &all[at[i]]
		lock, op, mount := more.get(le.Uint64(b[inode:])+locks), more.get(le.Uint64(b[ops:])+show), more.get(d.Mount-inMount+id)
		d.MntID = int(int32(le.Uint32(mount.Bytes)))
		fn := le.Uint64(op.Bytes)
		d.Plain = lock.Err == nil && op.Err == nil && mount.Err == nil && le.Uint64(lock.Bytes) == 0 && (fn == 0 || fn == socket)
	}
	return nil
}

// places are words to be read, each once: many files are of one inode, of one mount or of one sort.
type places struct {
	all   []Place
	at    map[uint64]int // of all, by address
	bytes []byte         // for them
}

func (p *places) add(addr uint64) {
	if _, ok := p.at[addr]; ok {
		return
	}
	p.at[addr] = len(p.all)
	p.all = append(p.all, Place{Addr: addr, Bytes: p.bytes[:8:8]})
	p.bytes = p.bytes[8:]
}

func (p *places) get(addr uint64) *Place { return &p.all[p.at[addr]] }

// ownerOffset is where the struct file has the pointer to its owner, which is nil as long as nobody named one. It is one
// since Linux 6.12; before the owner itself stood there, and ok is false.
func (m *Memory) ownerOffset(w *walk) (off uint64, ok bool) {
	f, err := m.types.find("file.f_owner")
	if err != nil {
		if w.err == nil {
			w.err = err
		}
		return 0, false
	}
	return uint64(f.bits / 8), f.size == 64
}

// socketShow is the function that adds to the fdinfo of sockets, which asks their family; 0: there is none.
func (m *Memory) socketShow(off uint64) (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil // then none is plain
	}
	defer unix.Close(fd)
	file, err := m.File(fd)
	if err != nil {
		return 0, err
	}
	w := walk{m: m}
	return w.word(w.get(file, "file.f_op") + off), w.err
}
