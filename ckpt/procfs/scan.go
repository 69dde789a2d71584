package procfs

import (
	"bytes"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// shownText bounds how much of an offending line an error quotes.
const shownText = 80

// textError reports text of file that is not as proc(5) describes it.
func textError(file, field string, text []byte) error {
	if len(text) > shownText {
		text = text[:shownText]
	}
	return fmt.Errorf("/proc %s: cannot read the %s in %q", file, field, text)
}

// cutLine returns the first line of b without its newline, and what follows.
func cutLine(b []byte) (line, rest []byte) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// cutField returns the text up to the first space and what follows that one space.
func cutField(b []byte) (field, rest []byte) {
	if i := bytes.IndexByte(b, ' '); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// isBlank reports whether c separates words in /proc.
func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// skipBlanks drops spaces and tabs at the front.
func skipBlanks(b []byte) []byte {
	for len(b) > 0 && isBlank(b[0]) {
		b = b[1:]
	}
	return b
}

// nextWord returns the next run of characters that are no blanks, and what follows it.
func nextWord(b []byte) (word, rest []byte) {
	b = skipBlanks(b)
	for i, c := range b {
		if isBlank(c) {
			return b[:i], b[i:]
		}
	}
	return b, nil
}

// cutKey splits "Key:  value", the value without blanks in front.
func cutKey(line []byte) (key, value []byte, ok bool) {
	i := bytes.IndexByte(line, ':')
	if i < 0 {
		return nil, nil, false
	}
	return line[:i], skipBlanks(line[i+1:]), true
}

// digit returns the value of a lower-case digit, or 255.
func digit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// number reads digits of a base at the front of b. n is how many bytes it took; 0 means that
// there is no number or that it does not fit 64 bits.
func number(b []byte, base uint64) (v uint64, n int) {
	limit := math.MaxUint64 / base
	for n < len(b) {
		d := uint64(digit(b[n]))
		if d >= base {
			break
		}
		if v > limit || v*base > math.MaxUint64-d {
			return 0, 0
		}
		v = v*base + d
		n++
	}
	return v, n
}

// whole reads a word that is nothing but one number of the base.
func whole(b []byte, base uint64) (uint64, bool) {
	v, n := number(b, base)
	return v, n > 0 && n == len(b)
}

// hex0x reads a number such as 0x7fff, or without the 0x.
func hex0x(b []byte) (uint64, bool) {
	if len(b) > 2 && b[0] == '0' && b[1] == 'x' {
		b = b[2:]
	}
	return whole(b, 16)
}

// integer reads a decimal number with an optional minus.
func integer(b []byte) (int64, bool) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	v, ok := whole(b, 10)
	switch {
	case !ok:
		return 0, false
	case neg && v <= 1<<63:
		return -int64(v), true
	case !neg && v < 1<<63:
		return int64(v), true
	}
	return 0, false
}

// smallInt reads a decimal number that fits 32 bits: pids, fds, clocks.
func smallInt(b []byte) (int, bool) {
	v, ok := integer(b)
	if !ok || v < math.MinInt32 || v > math.MaxInt32 {
		return 0, false
	}
	return int(v), true
}

// kib reads "12 kB" and returns bytes.
func kib(b []byte) (uint64, bool) {
	w, rest := nextWord(b)
	v, ok := whole(w, 10)
	unit, _ := nextWord(rest)
	if !ok || v > math.MaxUint64>>10 || string(unit) != "kB" {
		return 0, false
	}
	return v << 10, true
}

// device reads MAJOR:MINOR at the front of b, both of the base, and returns it as st_dev has it.
func device(b []byte, base uint64) (dev uint64, n int) {
	major, i := number(b, base)
	if i == 0 || i >= len(b) || b[i] != ':' || major > math.MaxUint32 {
		return 0, 0
	}
	minor, j := number(b[i+1:], base)
	if j == 0 || minor > math.MaxUint32 {
		return 0, 0
	}
	return unix.Mkdev(uint32(major), uint32(minor)), i + 1 + j
}

// unescape undoes the kernel's mangle_path for the characters in set: \ooo with three octal
// digits. A backslash that starts none of these stands for itself.
func unescape(b []byte, set string) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if c, ok := octalEscape(b[i:], set); ok {
			out = append(out, c)
			i += 3
			continue
		}
		out = append(out, b[i])
	}
	return string(out)
}

// octalEscape reads \ooo at the front of b if it stands for one of set.
func octalEscape(b []byte, set string) (byte, bool) {
	if len(b) < 4 || b[0] != '\\' {
		return 0, false
	}
	v, ok := whole(b[1:4], 8)
	if !ok || v > 255 {
		return 0, false
	}
	for i := 0; i < len(set); i++ {
		if set[i] == byte(v) {
			return byte(v), true
		}
	}
	return 0, false
}
