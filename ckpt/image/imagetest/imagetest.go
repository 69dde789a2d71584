// Package imagetest makes small valid images for tests.
package imagetest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// Manifest returns a valid manifest of a small tree: a root (pid 1000, two threads), a stopped
// child (1001) that shares its descriptors, and a zombie (1002). It has every kind of region:
// private memory in several pieces, a shared segment and a blob.
func Manifest() *image.Manifest {
	return &image.Manifest{
		Tool:    "imagetest",
		Created: 1_790_000_000_000_000_000,
		Host:    image.Host{Hostname: "host", Kernel: "6.18.0", Arch: "amd64", BootID: "boot", CPU: "cpu", XFeatures: 7, XStateLen: 832, VDSO: make([]byte, 32), VDSOLen: 8192},
		Tasks: []image.Task{
			{PID: 1000, PPID: 1, PGID: 1000, SID: 1000, State: image.TaskRunning, ExitSignal: 17, Comm: "root", MM: 1, Sighand: 1,
				Threads: []image.Thread{thread(1000), thread(1003)}, Pending: [][]byte{siginfo(10)},
				Rlimits: []image.Rlimit{{Cur: 1, Max: 1<<64 - 1}},
				Timers:  []image.POSIXTimer{{ID: 0, Clock: 1, Notify: 4, Signal: 14, TID: 1003, Interval: 1e9, Value: 5e8}}},
			{PID: 1001, PPID: 1000, PGID: 1001, SID: 1000, State: image.TaskStopped, StopSignal: 19, ExitSignal: 17, Comm: "child", MM: 2, Sighand: 2,
				Threads: []image.Thread{thread(1001)}},
			{PID: 1002, PPID: 1001, PGID: 1001, SID: 1000, State: image.TaskZombie, ExitStatus: 3 << 8, ExitSignal: 17, Comm: "gone"},
		},
		MMs:      []image.MM{mm(0x7f0000000000), mm(0x7f1000000000)},
		FDTables: []image.FDTable{{FDs: []image.FD{{Num: 0, File: 1}, {Num: 3, File: 2, CloExec: true}, {Num: 9, File: 1}}}},
		FSs:      []image.FS{{Cwd: "/tmp", Root: "/", Umask: 0o22}},
		Sighands: []image.Sighand{{Actions: []image.Sigaction{{Signal: 2, Handler: 0x401000, Flags: 0x04000000, Restorer: 0x401100, Mask: 1}}}, {}},
		Files: []image.File{
			{Kind: "regular", Flags: 0x8002, Pos: 123, Path: "/tmp/not utf-8 \xff"},
			{Kind: "pipe", Flags: 1, Path: "pipe:[77]", Rec: []byte{0xa1, 0x01, 0x19, 0x10, 0x00}, Blob: 1},
		},
		Segments: []image.Segment{{Size: 300 << 10, Extents: []image.Extent{{Start: 0, Len: 4096}, {Start: 60 << 10, Len: 240 << 10}}}},
		Blobs:    []image.Blob{{Len: 5000}, {Len: 0}},
		Lost:     []image.Finding{{Severity: image.Lose, PID: 1000, FD: 0, Kind: "terminal", What: "its other end is gone", Remedy: "read NAME.out"}},
	}
}

// thread is a thread with all that a valid manifest needs.
func thread(tid int32) image.Thread {
	return image.Thread{TID: tid, Comm: "thread", Regs: make([]byte, 27*8), XState: make([]byte, 832), FDTable: 1, FS: 1,
		Creds: image.Creds{Groups: []uint32{4, 24}}, Sched: image.Sched{Affinity: []byte{3}}}
}

// siginfo is a siginfo_t with a signal number.
func siginfo(n uint32) []byte {
	b := make([]byte, 128)
	binary.LittleEndian.PutUint32(b, n)
	return b
}

// mm is an address space from base on.
func mm(base uint64) image.MM {
	exe := image.MappedFile{Path: "/usr/bin/prog", Dev: 5, Ino: 6, Size: 7000, MTime: 8, Mode: 0o100755}
	return image.MM{StartCode: base, EndCode: base + 100, Auxv: make([]byte, 32), Exe: exe, Dumpable: 1, CoreFilter: 0x33,
		VMAs: []image.VMA{
			{Start: base, End: base + 0x2000, Kind: image.VMAFilePrivate, Prot: 5, Flags: 2, VMFlags: []string{"rd", "ex"}, File: exe,
				Extents: []image.Extent{{Start: base + 0x1000, Len: 0x1000}}},
			{Start: base + 0x2000, End: base + 0x100000, Kind: image.VMAAnon, Prot: 3, Flags: 2, VMFlags: []string{"rd", "wr"}, Name: "[heap]",
				Extents: []image.Extent{{Start: base + 0x2000, Len: 0x1000}, {Start: base + 0x8000, Len: 0x20000}, {Start: base + 0x30000, Len: 0x1000}}},
			{Start: base + 0x200000, End: base + 0x200000 + 300<<10, Kind: image.VMASegment, Prot: 3, Flags: 1, Segment: 1},
			{Start: base + 0x300000, End: base + 0x304000, Kind: image.VMAVvar, Prot: 1, Flags: 2, Name: "[vvar]"},
			{Start: base + 0x304000, End: base + 0x306000, Kind: image.VMAVDSO, Prot: 5, Flags: 2, Name: "[vdso]"},
		}}
}

// Fill is data for Bytes: every eight bytes hold their address, with the number of the
// segment or blob in the upper bits.
func Fill(r image.Region, start uint64, b []byte) {
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], start+uint64(i)+uint64(r.Ref)<<48)
	}
}

// Bytes returns the whole image of m. fill, such as Fill, writes the data of one extent or
// blob; nil leaves all data zero.
func Bytes(t testing.TB, m *image.Manifest, fill func(r image.Region, start uint64, b []byte)) []byte {
	t.Helper()
	head, l, err := image.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]byte, l.HeadLen+l.DataLen)
	copy(all, head)
	if fill != nil {
		writeData(m, all[l.HeadLen:], fill)
	}
	hashes := make([]image.Hash, len(l.Chunks))
	for i, c := range l.Chunks {
		hashes[i] = image.HashOf(all[c.Off : c.Off+int64(c.Len)])
	}
	trailer, _, err := l.Trailer(hashes)
	if err != nil {
		t.Fatal(err)
	}
	return append(all, trailer...)
}

// writeData goes through the data section in the order of the manifest, without the Layout.
func writeData(m *image.Manifest, data []byte, fill func(r image.Region, start uint64, b []byte)) {
	extents := func(r image.Region, all []image.Extent) {
		for _, e := range all {
			fill(r, e.Start, data[:e.Len])
			data = data[e.Len:]
		}
	}
	for i := range m.MMs {
		for j := range m.MMs[i].VMAs {
			extents(image.Region{Kind: image.RegionVMA, MM: int32(i), VMA: int32(j)}, m.MMs[i].VMAs[j].Extents)
		}
	}
	for i := range m.Segments {
		extents(image.Region{Kind: image.RegionSegment, Ref: image.ObjRef(i + 1)}, m.Segments[i].Extents)
	}
	for i, b := range m.Blobs {
		fill(image.Region{Kind: image.RegionBlob, Ref: image.ObjRef(i + 1)}, 0, data[:b.Len])
		data = data[(b.Len+image.PageSize-1)&^(image.PageSize-1):]
	}
}

// Open opens and verifies an image.
func Open(t testing.TB, b []byte) *image.Reader {
	t.Helper()
	r, err := image.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return r
}
