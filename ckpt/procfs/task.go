package procfs

import (
	"bytes"
	"encoding/binary"
)

// ParsePIDs parses lists of process ids such as /proc/PID/task/TID/children.
func ParsePIDs(b []byte) ([]int, error) {
	pids, ok := ints(bytes.TrimRight(b, "\n"))
	if !ok {
		return nil, textError("children", "process ids", b)
	}
	return pids, nil
}

// Syscall is /proc/PID/task/TID/syscall: where a thread is blocked.
type Syscall struct {
	Running bool  // on a CPU or runnable; nothing else is known then
	NR      int64 // -1: blocked, but not in a system call
	Args    [6]uint64
	SP, PC  uint64
}

// ParseSyscall parses /proc/PID/task/TID/syscall.
func ParseSyscall(b []byte) (Syscall, error) {
	var s Syscall
	text := bytes.TrimRight(b, "\n")
	if string(text) == "running" {
		s.Running = true
		return s, nil
	}
	w, rest := nextWord(text)
	nr, ok := integer(w)
	if !ok {
		return s, textError("syscall", "number", b)
	}
	s.NR = nr
	to := []*uint64{&s.SP, &s.PC}
	if nr >= 0 {
		to = []*uint64{&s.Args[0], &s.Args[1], &s.Args[2], &s.Args[3], &s.Args[4], &s.Args[5], &s.SP, &s.PC}
	}
	for _, p := range to {
		w, rest = nextWord(rest)
		if *p, ok = hex0x(w); !ok {
			return s, textError("syscall", "arguments", b)
		}
	}
	if len(skipBlanks(rest)) > 0 {
		return s, textError("syscall", "end", b)
	}
	return s, nil
}

// ParseAuxv parses /proc/PID/auxv of a 64-bit little-endian process: the values of getauxval(3)
// by AT_* number. A process without an address space has none.
func ParseAuxv(b []byte) (map[uint64]uint64, error) {
	const pair = 16
	all := make(map[uint64]uint64, len(b)/pair)
	for len(b) > 0 {
		if len(b) < pair {
			return nil, textError("auxv", "last pair", b)
		}
		key := binary.LittleEndian.Uint64(b)
		if key == 0 { // AT_NULL ends it; the kernel shows the unused rest of its array too
			break
		}
		all[key] = binary.LittleEndian.Uint64(b[8:])
		b = b[pair:]
	}
	return all, nil
}
