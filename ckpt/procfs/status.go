package procfs

import (
	"bytes"
	"math"
)

// Status is /proc/PID/status or /proc/PID/task/TID/status. What the kernel does not print,
// such as the memory of a zombie, is zero.
type Status struct {
	Name                         string // unescaped
	Umask                        uint32
	State                        byte
	Tgid, Pid, PPid, TracerPid   int
	Uid, Gid                     [4]uint32 // real, effective, saved, filesystem
	Groups                       []uint32
	NStgid, NSpid, NSpgid, NSsid []int // outermost pid namespace first
	Kthread                      bool
	VmRSS, VmLck, VmSwap         uint64 // bytes
	THPEnabled                   bool   // PR_SET_THP_DISABLE is not set
	UntagMask                    uint64
	X86ThreadFeatures            string // "shstk wrss", as the kernel prints them
	X86ThreadFeaturesLocked      string
	Threads                      int
	SigQ, SigQMax                uint64 // signals queued to the real uid, and its RLIMIT_SIGPENDING
	SigPnd, ShdPnd               uint64 // bit n-1 is signal n
	SigBlk, SigIgn, SigCgt       uint64
	CapInh, CapPrm, CapEff       uint64
	CapBnd, CapAmb               uint64
	NoNewPrivs                   bool
	Seccomp                      int // SECCOMP_MODE_*
	SeccompFilters               int
	SpeculationStoreBypass       string
	SpeculationIndirectBranch    string
	MemsAllowed                  string // Mems_allowed_list: NUMA nodes, such as "0-1"
}

// statusNeeded is how many of the keys are counted by parseLine as those no reader can do
// without.
const statusNeeded = 4

// ParseStatus parses /proc/PID/status. It wants Name, State, Tgid and Pid; keys that Status
// has no place for are skipped.
func ParseStatus(b []byte) (Status, error) {
	var s Status
	seen := 0
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, value, ok := cutKey(line)
		if !ok {
			continue
		}
		needed, ok := s.parseLine(string(key), value)
		if !ok {
			return s, textError("status", "value", line)
		}
		if needed {
			seen++
		}
	}
	if seen != statusNeeded {
		return s, textError("status", "Name, State, Tgid and Pid", b)
	}
	return s, nil
}

// parseLine takes one line; needed says that it is one of those that must be there.
func (s *Status) parseLine(key string, v []byte) (needed, ok bool) {
	switch key {
	case "Name":
		s.Name = unescapeName(v)
		return true, true
	case "State":
		if len(v) == 0 {
			return true, false
		}
		s.State = v[0]
		return true, true
	case "Tgid":
		s.Tgid, ok = smallInt(v)
		return true, ok
	case "Pid":
		s.Pid, ok = smallInt(v)
		return true, ok
	}
	for _, parse := range [...]func(string, []byte) (bool, bool){s.parseSignals, s.parseCreds, s.parseIDs, s.parseMemory, s.parseMisc} {
		if known, ok := parse(key, v); known {
			return false, ok
		}
	}
	return false, true
}

// parseIDs takes the ids of the process and its namespaces.
func (s *Status) parseIDs(key string, v []byte) (known, ok bool) {
	switch key {
	case "PPid":
		s.PPid, ok = smallInt(v)
	case "TracerPid":
		s.TracerPid, ok = smallInt(v)
	case "NStgid":
		s.NStgid, ok = ints(v)
	case "NSpid":
		s.NSpid, ok = ints(v)
	case "NSpgid":
		s.NSpgid, ok = ints(v)
	case "NSsid":
		s.NSsid, ok = ints(v)
	case "Threads":
		s.Threads, ok = smallInt(v)
	default:
		return false, false
	}
	return true, ok
}

// parseCreds takes credentials(7).
func (s *Status) parseCreds(key string, v []byte) (known, ok bool) {
	switch key {
	case "Umask":
		var u uint64
		u, ok = whole(v, 8)
		s.Umask, ok = uint32(u), ok && u <= math.MaxUint32
	case "Uid":
		ok = ids(v, &s.Uid)
	case "Gid":
		ok = ids(v, &s.Gid)
	case "Groups":
		s.Groups, ok = uints(v)
	case "CapInh":
		s.CapInh, ok = whole(v, 16)
	case "CapPrm":
		s.CapPrm, ok = whole(v, 16)
	case "CapEff":
		s.CapEff, ok = whole(v, 16)
	case "CapBnd":
		s.CapBnd, ok = whole(v, 16)
	case "CapAmb":
		s.CapAmb, ok = whole(v, 16)
	case "NoNewPrivs":
		s.NoNewPrivs, ok = flag(v)
	default:
		return false, false
	}
	return true, ok
}

// parseSignals takes signal sets and the queue.
func (s *Status) parseSignals(key string, v []byte) (known, ok bool) {
	switch key {
	case "SigQ":
		used, limit, found := bytes.Cut(v, []byte{'/'})
		var ok1, ok2 bool
		s.SigQ, ok1 = whole(used, 10)
		s.SigQMax, ok2 = whole(limit, 10)
		ok = found && ok1 && ok2
	case "SigPnd":
		s.SigPnd, ok = whole(v, 16)
	case "ShdPnd":
		s.ShdPnd, ok = whole(v, 16)
	case "SigBlk":
		s.SigBlk, ok = whole(v, 16)
	case "SigIgn":
		s.SigIgn, ok = whole(v, 16)
	case "SigCgt":
		s.SigCgt, ok = whole(v, 16)
	default:
		return false, false
	}
	return true, ok
}

// parseMemory takes what concerns the address space.
func (s *Status) parseMemory(key string, v []byte) (known, ok bool) {
	switch key {
	case "VmRSS":
		s.VmRSS, ok = kib(v)
	case "VmLck":
		s.VmLck, ok = kib(v)
	case "VmSwap":
		s.VmSwap, ok = kib(v)
	case "THP_enabled":
		s.THPEnabled, ok = flag(v)
	case "untag_mask":
		s.UntagMask, ok = hex0x(v)
	default:
		return false, false
	}
	return true, ok
}

// parseMisc takes the rest.
func (s *Status) parseMisc(key string, v []byte) (known, ok bool) {
	switch key {
	case "Kthread":
		s.Kthread, ok = flag(v)
	case "Mems_allowed_list":
		s.MemsAllowed, ok = string(v), true
	case "Seccomp":
		s.Seccomp, ok = smallInt(v)
	case "Seccomp_filters":
		s.SeccompFilters, ok = smallInt(v)
	case "Speculation_Store_Bypass":
		s.SpeculationStoreBypass, ok = string(v), true
	case "SpeculationIndirectBranch":
		s.SpeculationIndirectBranch, ok = string(v), true
	case "x86_Thread_features":
		s.X86ThreadFeatures, ok = string(bytes.TrimRight(v, " ")), true
	case "x86_Thread_features_locked":
		s.X86ThreadFeaturesLocked, ok = string(bytes.TrimRight(v, " ")), true
	default:
		return false, false
	}
	return true, ok
}

// unescapeName undoes the two escapes of Name: \n and \\.
func unescapeName(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+1 < len(b) {
			switch b[i+1] {
			case 'n':
				out = append(out, '\n')
				i++
				continue
			case '\\':
				i++
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}

// flag reads 0 or 1.
func flag(b []byte) (v, ok bool) {
	switch string(b) {
	case "0":
		return false, true
	case "1":
		return true, true
	}
	return false, false
}

// ids reads the four ids of Uid and Gid.
func ids(b []byte, to *[4]uint32) bool {
	v, ok := uints(b)
	return ok && copy(to[:], v) == 4 && len(v) == 4
}

// ints reads numbers between blanks.
func ints(b []byte) ([]int, bool) {
	var all []int
	for w, rest := nextWord(b); len(w) > 0; w, rest = nextWord(rest) {
		v, ok := smallInt(w)
		if !ok {
			return nil, false
		}
		all = append(all, v)
	}
	return all, true
}

// uints reads user or group ids between blanks.
func uints(b []byte) ([]uint32, bool) {
	var all []uint32
	for w, rest := nextWord(b); len(w) > 0; w, rest = nextWord(rest) {
		v, ok := whole(w, 10)
		if !ok || v > math.MaxUint32 {
			return nil, false
		}
		all = append(all, uint32(v))
	}
	return all, true
}
