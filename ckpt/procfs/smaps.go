package procfs

import (
	"bytes"
)

// Smap is one mapping of /proc/PID/smaps with what it costs, in bytes, and its flags.
type Smap struct {
	Mapping
	RSS, Anonymous, AnonHuge, Swap, Locked uint64
	KernelPageSize                         uint64
	ProtectionKey                          int
	Flags                                  []string // VmFlags, two letters each, as the kernel names them
}

// HasFlag reports whether VmFlags holds the two-letter flag.
func (s *Smap) HasFlag(name string) bool {
	for _, f := range s.Flags {
		if f == name {
			return true
		}
	}
	return false
}

// smapRecord is about what the kernel writes for one mapping, to size the result by.
const smapRecord = 640

// ParseSmaps parses /proc/PID/smaps. A mapping without its VmFlags is an error, since a missing
// flag would be taken for one that is not set; other lines it does not know are skipped.
func ParseSmaps(b []byte) ([]Smap, error) {
	if err := checkEnd("smaps", b); err != nil {
		return nil, err
	}
	maps := make([]Smap, 0, len(b)/smapRecord+1)
	var last string
	for len(b) > 0 {
		var s Smap
		line, rest := cutLine(b)
		m, err := parseMapping("smaps", line, last)
		if err != nil {
			return nil, err
		}
		s.Mapping, last = m, m.Path
		if b, err = s.parseFields(rest); err != nil {
			return nil, err
		}
		maps = append(maps, s)
	}
	return maps, nil
}

// parseFields reads the lines below a mapping, up to and with VmFlags, which is the last one.
func (s *Smap) parseFields(b []byte) (rest []byte, err error) {
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, value, ok := cutKey(line)
		if !ok {
			return nil, textError("smaps", "field", line)
		}
		if string(key) == "VmFlags" {
			s.Flags = splitFlags(value)
			return b, nil
		}
		if !s.setField(key, value) {
			return nil, textError("smaps", "size", line)
		}
	}
	return nil, textError("smaps", "VmFlags of the mapping "+s.Path, b)
}

// setField keeps the value of a key that Smap has a place for.
func (s *Smap) setField(key, value []byte) bool {
	var to *uint64
	switch string(key) {
	case "Rss":
		to = &s.RSS
	case "Anonymous":
		to = &s.Anonymous
	case "AnonHugePages":
		to = &s.AnonHuge
	case "Swap":
		to = &s.Swap
	case "Locked":
		to = &s.Locked
	case "KernelPageSize":
		to = &s.KernelPageSize
	case "ProtectionKey":
		v, ok := smallInt(value)
		s.ProtectionKey = v
		return ok
	default:
		return true
	}
	v, ok := kib(value)
	*to = v
	return ok
}

// splitFlags splits "rd wr mr ". The flags are parts of one string, so a mapping costs two
// allocations and not twenty.
func splitFlags(b []byte) []string {
	text := string(bytes.TrimRight(b, " "))
	if text == "" {
		return nil
	}
	flags := make([]string, 0, len(text)/3+1)
	for start := 0; start <= len(text); {
		end := start
		for end < len(text) && text[end] != ' ' {
			end++
		}
		if end > start {
			flags = append(flags, text[start:end])
		}
		start = end + 1
	}
	return flags
}
