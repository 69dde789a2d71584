package procfs

import (
	"os"
	"testing"
)

// seed adds what the running kernel shows, texts of the tests and a cut one of each.
func seed(f *testing.F, files []string, texts ...string) {
	f.Helper()
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	for _, s := range texts {
		f.Add([]byte(s))
		f.Add([]byte(s[:len(s)/2]))
	}
}

func FuzzParseMaps(f *testing.F) {
	seed(f, []string{"testdata/maps.txt", "/proc/self/maps"}, "1000-2000 rw-p 0 00:00 0\n")
	f.Fuzz(func(t *testing.T, b []byte) {
		maps, err := ParseMaps(b)
		if err != nil {
			return
		}
		for _, m := range maps {
			if m.End <= m.Start {
				t.Errorf("%+v of %q", m, b)
			}
		}
	})
}

func FuzzParseSmaps(f *testing.F) {
	seed(f, []string{"testdata/smaps.txt", "/proc/self/smaps"}, smapHead+"VmFlags: rd wr\n")
	f.Fuzz(func(t *testing.T, b []byte) {
		smaps, err := ParseSmaps(b)
		if err != nil {
			return
		}
		for _, s := range smaps {
			for _, name := range s.Flags {
				if name == "" || !s.HasFlag(name) {
					t.Errorf("%+v of %q", s, b)
				}
			}
		}
	})
}

func FuzzParseStat(f *testing.F) {
	seed(f, []string{"/proc/self/stat"}, "7007 (we (i)rd)\n x)"+statTail)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseStat(b); err == nil && len(s.Comm) > len(b) {
			t.Errorf("%+v of %q", s, b)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	seed(f, []string{"testdata/status.txt", "/proc/self/status"}, statusHead)
	f.Fuzz(func(_ *testing.T, b []byte) { ParseStatus(b) })
}

func FuzzParseFDInfo(f *testing.F) {
	seed(f, []string{"/proc/self/fdinfo/0"},
		fdHead+"scm_fds: 3\n",
		fdHead+"eventfd-count:               1f\neventfd-id: 12\neventfd-semaphore: 1\n",
		fdHead+"tfd:        5 events:       19 data:     7f4400000005  pos:0 ino:26b9 sdev:f\n",
		fdHead+"lock:\t1: FLOCK  ADVISORY  WRITE 6056 fe:00:9977884 0 EOF\n")
	f.Fuzz(func(_ *testing.T, b []byte) { ParseFDInfo(b) })
}

func FuzzParseTimers(f *testing.F) {
	seed(f, nil, "ID: 4\nsignal: 14/0000000000000004\nnotify: signal/pid.6056\nClockID: 1\nID: 3\nsignal: 34/0000000000001234\nnotify: none/tid.6056\nClockID: -6\n")
	f.Fuzz(func(_ *testing.T, b []byte) { ParseTimers(b) })
}

func FuzzParseTimerList(f *testing.F) {
	seed(f, []string{"testdata/timer_list.txt"})
	f.Fuzz(func(_ *testing.T, b []byte) { ParseTimerList(b) })
}

func FuzzParseSyscall(f *testing.F) {
	seed(f, nil, "running\n", "-1 0x7ffdb2d9d2e8 0x7fb059630dd0\n", "0 0x3 0x7faba083d000 0x20000 0x7faba08d0b60 0xffffffff 0x0 0x7fff6d642d08 0x7faba09b92ad\n")
	f.Fuzz(func(_ *testing.T, b []byte) { ParseSyscall(b) })
}

func FuzzParsePIDs(f *testing.F) {
	seed(f, nil, "1 22 333 \n")
	f.Fuzz(func(_ *testing.T, b []byte) { ParsePIDs(b) })
}

func FuzzParseAuxv(f *testing.F) {
	seed(f, []string{"/proc/self/auxv"})
	f.Fuzz(func(_ *testing.T, b []byte) { ParseAuxv(b) })
}

func FuzzParseMountInfo(f *testing.F) {
	seed(f, []string{"/proc/self/mountinfo"}, "27 1 254:0 /sub\\040dir /a\\011b\\134c rw shared:1 master:2 unbindable - ext4 /dev/vda rw,discard\n")
	f.Fuzz(func(_ *testing.T, b []byte) { ParseMountInfo(b) })
}
