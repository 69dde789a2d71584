package procfs

import (
	"bytes"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// read returns a file of testdata: text of a 6.18 kernel.
func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseMaps(t *testing.T) {
	fe := unix.Mkdev(0xfe, 0)
	for _, c := range []struct {
		line string
		want Mapping
	}{
		{"56408a3ed000-56408a3ee000 r-xp 00001000 fe:00 9978323                    /usr/bin/target",
			Mapping{Start: 0x56408a3ed000, End: 0x56408a3ee000, Offset: 0x1000, Dev: fe, Ino: 9978323, Read: true, Exec: true, Path: "/usr/bin/target"}},
		{"7fb058c00000-7fb059400000 rw-p 00000000 00:00 0 ",
			Mapping{Start: 0x7fb058c00000, End: 0x7fb059400000, Read: true, Write: true}},
		{"7fb059558000-7fb05955a000 rw-s 00000000 fe:00 9978319                    /tmp/hp gone (deleted)",
			Mapping{Start: 0x7fb059558000, End: 0x7fb05955a000, Dev: fe, Ino: 9978319, Read: true, Write: true, Shared: true, Path: "/tmp/hp gone", Deleted: true}},
		{`7fb059740000-7fb059742000 rw-p 00001000 fe:00 9978318                    /tmp/hp a\012b`,
			Mapping{Start: 0x7fb059740000, End: 0x7fb059742000, Offset: 0x1000, Dev: fe, Ino: 9978318, Read: true, Write: true, Path: "/tmp/hp a\nb"}},
		{`7fb059740000-7fb059742000 ---p 00001000 fe:00 9978318                    /tmp/a\040\\b `,
			Mapping{Start: 0x7fb059740000, End: 0x7fb059742000, Offset: 0x1000, Dev: fe, Ino: 9978318, Path: `/tmp/a\040\\b `}},
		{"7fb059742000-7fb059744000 r--s 00000000 00:01 26                         /memfd:my mem (deleted)",
			Mapping{Start: 0x7fb059742000, End: 0x7fb059744000, Dev: unix.Mkdev(0, 1), Ino: 26, Read: true, Shared: true, Path: "/memfd:my mem", Deleted: true}},
		{"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
			Mapping{Start: 0xffffffffff600000, End: 0xffffffffff601000, Exec: true, Path: "[vsyscall]"}},
		{"1000-2000 rw-p ffffffffffffffff 103:fffff 18446744073709551615",
			Mapping{Start: 0x1000, End: 0x2000, Offset: 1<<64 - 1, Dev: unix.Mkdev(0x103, 0xfffff), Ino: 1<<64 - 1, Read: true, Write: true}},
	} {
		got, err := ParseMaps([]byte(c.line + "\n"))
		if err != nil || len(got) != 1 || got[0] != c.want {
			t.Errorf("%q:\n got %+v, %v\nwant %+v", c.line, got, err, c.want)
		}
	}
}

func TestParseMapsErrors(t *testing.T) {
	for _, text := range []string{
		"56408a3ed000-56408a3ee000 r-xp 00001000 fe:00 99783", // no newline: the path may be cut
		"\n",
		"-\n",
		"1000\n",
		"1000-\n",
		"1000-2000\n",
		"2000-1000 rw-p 0 00:00 0\n",
		"1000-1000 rw-p 0 00:00 0\n",
		"1000-2000 rw\n",
		"1000-2000 wr-p 0 00:00 0\n",
		"1000-2000 rw-x 0 00:00 0\n",
		"1000-2000 rw-p x 00:00 0\n",
		"1000-2000 rw-p 0\n",
		"1000-2000 rw-p 0 00 0\n",
		"1000-2000 rw-p 0 00: 0\n",
		"1000-2000 rw-p 0 00:00\n",
		"1000-2000 rw-p 0 00:00 \n",
		"1000-2000 rw-p 0 00:00 12x\n",
		"1000-2000 rw-p 0 100000000:00 1\n",
		"1000-10000000000000000 rw-p 0 00:00 0\n",
		"1000-2000 rw-p 0 00:00 18446744073709551616\n",
	} {
		if got, err := ParseMaps([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, got)
		}
	}
}

func TestParseMapsFile(t *testing.T) {
	maps, err := ParseMaps(read(t, "maps.txt"))
	if err != nil || len(maps) != 32 {
		t.Fatalf("%d mappings, %v", len(maps), err)
	}
	smaps, err := ParseSmaps(read(t, "smaps.txt"))
	if err != nil || len(smaps) != len(maps) {
		t.Fatalf("%d mappings in smaps, %v", len(smaps), err)
	}
	for i := range maps {
		if maps[i] != smaps[i].Mapping {
			t.Errorf("maps has %+v, smaps %+v", maps[i], smaps[i].Mapping)
		}
		if i > 0 && maps[i].Start < maps[i-1].End {
			t.Errorf("mapping %d overlaps", i)
		}
	}
}

// The running kernel is one more example, and the one that counts.
func TestParseSelf(t *testing.T) {
	for name, parse := range map[string]func([]byte) (int, error){
		"maps":      func(b []byte) (int, error) { v, err := ParseMaps(b); return len(v), err },
		"smaps":     func(b []byte) (int, error) { v, err := ParseSmaps(b); return len(v), err },
		"mountinfo": func(b []byte) (int, error) { v, err := ParseMountInfo(b); return len(v), err },
		"auxv":      func(b []byte) (int, error) { v, err := ParseAuxv(b); return len(v), err },
		"stat":      func(b []byte) (int, error) { v, err := ParseStat(b); return v.PID, err },
		"status":    func(b []byte) (int, error) { v, err := ParseStatus(b); return v.Pid, err },
	} {
		b, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := parse(b); err != nil || n == 0 {
			t.Errorf("%s: %d records, %v", name, n, err)
		}
	}
	if maps, err := ParseMaps(nil); err != nil || len(maps) != 0 {
		t.Errorf("empty maps, as of a zombie: %v, %v", maps, err)
	}
}

func TestParseSmaps(t *testing.T) {
	smaps, err := ParseSmaps(read(t, "smaps.txt"))
	if err != nil {
		t.Fatal(err)
	}
	huge := smaps[6]
	if huge.RSS != 8<<20 || huge.Anonymous != 8<<20 || huge.AnonHuge != 8<<20 || huge.KernelPageSize != 4096 || huge.Swap != 0 {
		t.Errorf("huge pages: %+v", huge)
	}
	if want := []string{"rd", "wr", "mr", "mw", "me", "ac", "hg"}; !reflect.DeepEqual(huge.Flags, want) {
		t.Errorf("flags %v, want %v", huge.Flags, want)
	}
	var locked, dontfork int
	for i := range smaps {
		s := &smaps[i]
		if s.HasFlag("lo") {
			locked++
			if s.Locked != 4096 {
				t.Errorf("locked mapping: %+v", s)
			}
		}
		if s.HasFlag("dc") {
			dontfork++
		}
	}
	if locked != 1 || dontfork < 1 {
		t.Errorf("%d locked and %d dontfork mappings", locked, dontfork)
	}
}

const smapHead = "1000-2000 rw-p 00000000 00:00 0 \n"

func TestParseSmapsFields(t *testing.T) {
	got, err := ParseSmaps([]byte(smapHead + "Swap:      12 kB\nLocked:    4 kB\nKernelPageSize:     2048 kB\nProtectionKey:         3\nNewThing: 1 2 3\nVmFlags: \n"))
	want := Smap{Mapping: Mapping{Start: 0x1000, End: 0x2000, Read: true, Write: true}, Swap: 12288, Locked: 4096, KernelPageSize: 2 << 20, ProtectionKey: 3}
	if err != nil || !reflect.DeepEqual(got, []Smap{want}) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, text := range []string{
		smapHead,                           // no VmFlags
		smapHead + "Rss: 4 kB\n",           // no VmFlags
		smapHead + smapHead,                // no VmFlags
		smapHead + "Rss: 4\nVmFlags: rd\n", // no unit
		smapHead + "Rss: x kB\nVmFlags: rd\n",
		smapHead + "Rss: 18446744073709551615 kB\nVmFlags: rd\n",
		smapHead + "VmFlags: rd",
		smapHead + "what\nVmFlags: rd\n",
		smapHead + "ProtectionKey: x\nVmFlags: rd\n",
	} {
		if got, err := ParseSmaps([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, got)
		}
	}
}

// many is n lines or records of testdata, as of a process with that many mappings.
func many(b *testing.B, name, sep string, n int) []byte {
	b.Helper()
	text := read(b, name)
	have := bytes.Count(text, []byte(sep))
	return bytes.Repeat(text, (n+have-1)/have)
}

func BenchmarkParseMaps(b *testing.B) {
	text := many(b, "maps.txt", "\n", 414)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseMaps(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseSmaps(b *testing.B) {
	text := many(b, "smaps.txt", "VmFlags", 414)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseSmaps(text); err != nil {
			b.Fatal(err)
		}
	}
}
