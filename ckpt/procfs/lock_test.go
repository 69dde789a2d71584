package procfs

import (
	"math"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseLock(t *testing.T) {
	dev := unix.Mkdev(0xfe, 0)
	for line, want := range map[string]Lock{
		"lock:\t1: FLOCK  ADVISORY  WRITE 6056 fe:00:99 0 EOF":  {Type: "FLOCK", State: "ADVISORY", Mode: "WRITE", PID: 6056, Dev: dev, Ino: 99, End: math.MaxInt64},
		"lock:\t3: OFDLCK ADVISORY  READ -1 fe:00:99 40 41":     {Type: "OFDLCK", State: "ADVISORY", Mode: "READ", PID: -1, Dev: dev, Ino: 99, Start: 40, End: 41},
		"6: POSIX  ADVISORY  WRITE 7 fe:00:99 5 EOF":            {Type: "POSIX", State: "ADVISORY", Mode: "WRITE", PID: 7, Dev: dev, Ino: 99, Start: 5, End: math.MaxInt64},
		"6: -> POSIX  ADVISORY  WRITE 8 fe:00:99 5 6":           {Type: "POSIX", State: "ADVISORY", Mode: "WRITE", PID: 8, Dev: dev, Ino: 99, Start: 5, End: 6, Blocked: true},
		"lock:\t1: LEASE  BREAKING  UNLCK 22259 fe:00:99 0 EOF": {Type: "LEASE", State: "BREAKING", Mode: "UNLCK", PID: 22259, Dev: dev, Ino: 99, End: math.MaxInt64},
	} {
		if got, ok := ParseLock(line); !ok || got != want {
			t.Errorf("%q: %+v, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "lock:", "1: FLOCK", "1: POSIX ADVISORY WRITE 7 <none>:0 0 EOF", "1: POSIX ADVISORY WRITE 7 fe:00:99 5 4",
		"1: POSIX ADVISORY WRITE -2 fe:00:99 5 6", "1: POSIX ADVISORY WRITE 7 fe:00:99 -5 6", "1: POSIX ADVISORY WRITE 7 fe:00 5 6", "x POSIX ADVISORY WRITE 7 fe:00:9 5 6"} {
		if got, ok := ParseLock(line); ok {
			t.Errorf("%q was taken for %+v", line, got)
		}
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add("lock:\t1: FLOCK  ADVISORY  WRITE 6056 fe:00:9977884 0 EOF")
	f.Add("6: -> OFDLCK ADVISORY  WRITE -1 fe:00:99 5 6")
	f.Fuzz(func(t *testing.T, s string) {
		if l, ok := ParseLock(s); ok && (l.Start < 0 || l.End < l.Start || l.PID < -1) {
			t.Errorf("%q gives %+v", s, l)
		}
	})
}
