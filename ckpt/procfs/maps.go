package procfs

import (
	"bytes"
	"fmt"
)

// Mapping is one line of /proc/PID/maps.
type Mapping struct {
	Start, End, Offset        uint64
	Dev, Ino                  uint64
	Read, Write, Exec, Shared bool
	// Path is what the mapping shows: a path, "[heap]", "[anon:NAME]", "anon_inode:[…]" or
	// nothing. The kernel writes a newline in a path as \012, which is undone here; since it
	// leaves backslashes as they are, a name that really holds \012 comes out wrong, and only
	// /proc/PID/map_files tells the two apart.
	Path string
	// Deleted says that " (deleted)" was cut from Path. A file may really be named like that.
	Deleted bool
}

// deletedMark is what d_path puts after the path of an unlinked file.
const deletedMark = " (deleted)"

// Len is the size of the mapping in bytes.
func (m *Mapping) Len() uint64 { return m.End - m.Start }

// ParseMaps parses /proc/PID/maps. A last line without a newline is an error: the text was
// cut, and so would be its path.
func ParseMaps(b []byte) ([]Mapping, error) {
	if err := checkEnd("maps", b); err != nil {
		return nil, err
	}
	maps := make([]Mapping, 0, bytes.Count(b, []byte{'\n'}))
	var last string
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		m, err := parseMapping("maps", line, last)
		if err != nil {
			return nil, err
		}
		last = m.Path
		maps = append(maps, m)
	}
	return maps, nil
}

// checkEnd refuses text whose last line has no newline.
func checkEnd(file string, b []byte) error {
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return fmt.Errorf("/proc %s: the text is cut in its last line", file)
	}
	return nil
}

// parseMapping reads "START-END PERM OFFSET MAJOR:MINOR INO    PATH". last is the path of the
// line before: the mappings of a library share one string.
func parseMapping(file string, line []byte, last string) (Mapping, error) {
	var m Mapping
	start, n := number(line, 16)
	if n == 0 || n >= len(line) || line[n] != '-' {
		return m, textError(file, "start address", line)
	}
	rest := line[n+1:]
	end, n := number(rest, 16)
	if n == 0 || end <= start || n >= len(rest) || rest[n] != ' ' {
		return m, textError(file, "end address", line)
	}
	rest = rest[n+1:]
	if !m.permissions(rest) {
		return m, textError(file, "permissions", line)
	}
	rest = rest[5:]
	off, n := number(rest, 16)
	if n == 0 || n >= len(rest) || rest[n] != ' ' {
		return m, textError(file, "offset", line)
	}
	rest = rest[n+1:]
	dev, n := device(rest, 16)
	if n == 0 || n >= len(rest) || rest[n] != ' ' {
		return m, textError(file, "device", line)
	}
	rest = rest[n+1:]
	ino, n := number(rest, 10)
	if n == 0 || n < len(rest) && rest[n] != ' ' {
		return m, textError(file, "inode", line)
	}
	m.Start, m.End, m.Offset, m.Dev, m.Ino = start, end, off, dev, ino
	m.setPath(bytes.TrimLeft(rest[n:], " "), last)
	return m, nil
}

// permissions reads "rwxp ".
func (m *Mapping) permissions(b []byte) bool {
	if len(b) < 5 || b[4] != ' ' {
		return false
	}
	m.Read, m.Write, m.Exec, m.Shared = b[0] == 'r', b[1] == 'w', b[2] == 'x', b[3] == 's'
	return (m.Read || b[0] == '-') && (m.Write || b[1] == '-') && (m.Exec || b[2] == '-') && (m.Shared || b[3] == 'p')
}

// setPath takes the last column apart.
func (m *Mapping) setPath(b []byte, last string) {
	if bytes.HasSuffix(b, []byte(deletedMark)) {
		m.Deleted = true
		b = b[:len(b)-len(deletedMark)]
	}
	if string(b) == last {
		m.Path = last
		return
	}
	m.Path = unescape(b, "\n")
}
