package procfs

import "bytes"

// Mount is one line of /proc/PID/mountinfo.
type Mount struct {
	ID, Parent   int
	Dev          uint64
	Root         string // what of the filesystem is mounted, unescaped
	Point        string // where, as seen from the process's root, unescaped
	FSType       string
	Source       string
	Options      string // of the mount, as printed
	SuperOptions string // of the filesystem, as printed
}

// mangled is what the kernel escapes in paths and names of mountinfo.
const mangled = " \t\n\\#"

// ParseMountInfo parses /proc/PID/mountinfo.
func ParseMountInfo(b []byte) ([]Mount, error) {
	all := make([]Mount, 0, bytes.Count(b, []byte{'\n'}))
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		m, ok := parseMount(line)
		if !ok {
			return nil, textError("mountinfo", "fields", line)
		}
		all = append(all, m)
	}
	return all, nil
}

// parseMount reads "ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER". Fields
// are cut at single spaces, since a source may be empty.
func parseMount(line []byte) (m Mount, ok bool) {
	var f [6][]byte
	rest := line
	for i := range f {
		f[i], rest = cutField(rest)
	}
	var ok1, ok2 bool
	m.ID, ok1 = smallInt(f[0])
	m.Parent, ok2 = smallInt(f[1])
	dev, n := device(f[2], 10)
	if !ok1 || !ok2 || n == 0 || n != len(f[2]) || len(f[5]) == 0 {
		return m, false
	}
	m.Dev = dev
	m.Root, m.Point = unescape(f[3], mangled), unescape(f[4], mangled)
	m.Options = string(f[5])
	for tag := []byte(nil); string(tag) != "-"; {
		if len(rest) == 0 {
			return m, false
		}
		tag, rest = cutField(rest)
	}
	fstype, rest := cutField(rest)
	source, super := cutField(rest)
	m.FSType, m.Source, m.SuperOptions = unescape(fstype, mangled), unescape(source, mangled), string(super)
	return m, len(fstype) > 0
}
