package image_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
	"github.com/fxamacker/cbor/v2"
)

// Each rule of Validate, broken once: the error names the field.
func TestValidate(t *testing.T) {
	type M = image.Manifest
	anon := func(m *M) *image.VMA { return &m.MMs[0].VMAs[1] }
	huge := func(m *M) *image.Segment { // in MMs whose mappings are whole huge pages
		for i := range m.MMs {
			v := m.MMs[i].VMAs[2]
			v.Start &^= 2<<20 - 1
			v.Start += 2 << 20
			v.End = v.Start + 2<<20
			m.MMs[i].VMAs = append(m.MMs[i].VMAs[:2:2], v)
		}
		m.Segments[0].Huge, m.Segments[0].Size, m.Segments[0].Extents = 21, 2<<20, nil
		return &m.Segments[0]
	}
	gone := func(m *M) *image.Segment {
		m.Segments[0].Path, m.Segments[0].Mode = "/tmp/gone", 0o100600
		return &m.Segments[0]
	}
	for _, c := range []struct {
		path  string
		spoil func(m *M)
	}{
		{"tasks", func(m *M) { m.Tasks = nil }},
		{"tasks[0].pid", func(m *M) { m.Tasks[0].PID = 0 }},
		{"tasks[0].pid", func(m *M) { m.Tasks[0].PID = 1 << 30 }},
		{"tasks[0].ppid", func(m *M) { m.Tasks[0].PPID = 1000 }},
		{"tasks[0].pgid", func(m *M) { m.Tasks[0].PGID = 5 }},
		{"tasks[1].pid", func(m *M) { m.Tasks[1].PID = 1000 }},
		{"tasks[1].pid", func(m *M) { m.Tasks[1].PID = 1003 }},
		{"tasks[1].ppid", func(m *M) { m.Tasks[1].PPID = 1002 }},
		{"tasks[1].ppid", func(m *M) { m.Tasks[1].PPID = -1 }},
		{"tasks[2].sid", func(m *M) { m.Tasks[2].SID = 1 }},
		{"tasks[1].state", func(m *M) { m.Tasks[1].State = 9 }},
		{"tasks[0].exit_signal", func(m *M) { m.Tasks[0].ExitSignal = 65 }},
		{"tasks[0].stop_signal", func(m *M) { m.Tasks[0].StopSignal = -1 }},
		{"tasks[2].exit_status", func(m *M) { m.Tasks[2].ExitStatus = 1 << 16 }},
		{"tasks[0].oom_score_adj", func(m *M) { m.Tasks[0].OOMScoreAdj = 1001 }},
		{"tasks[0].comm", func(m *M) { m.Tasks[0].Comm = "a\x00b" }},
		{"tasks[0].comm", func(m *M) { m.Tasks[0].Comm = strings.Repeat("x", 65) }},
		{"tasks[0].mm", func(m *M) { m.Tasks[0].MM = 0 }},
		{"tasks[0].mm", func(m *M) { m.Tasks[0].MM = 3 }},
		{"tasks[0].sighand", func(m *M) { m.Tasks[0].Sighand = 1<<32 - 1 }},
		{"tasks[1].sighand", func(m *M) { m.Tasks[1].Sighand = 1 }},
		{"tasks[2].threads", func(m *M) { m.Tasks[2].Threads = m.Tasks[1].Threads }},
		{"tasks[2].mm", func(m *M) { m.Tasks[2].MM = 1 }},
		{"tasks[2].sighand", func(m *M) { m.Tasks[2].Sighand = 1 }},
		{"tasks[1].ctl_tty", func(m *M) { m.Tasks[1].CtlTTY = 1 }},
		{"tasks[0].ctl_tty", func(m *M) { m.Tasks[0].CtlTTY = 3 }},
		{"tasks[0].tty_pgid", func(m *M) { m.Tasks[0].CtlTTY, m.Tasks[0].Foreground = 1, -1 }},
		{"tasks[0].tty_pgid", func(m *M) { m.Tasks[0].CtlTTY, m.Tasks[0].Foreground = 0, 7 }},
		{"tasks[0].pending[0]", func(m *M) { m.Tasks[0].Pending[0] = make([]byte, 127) }},
		{"tasks[0].pending[0]", func(m *M) { m.Tasks[0].Pending[0] = make([]byte, 128) }},
		{"tasks[0].itimers[1]", func(m *M) { m.Tasks[0].ITimers[1].Value = -1 }},
		{"tasks[0].timers[0].tid", func(m *M) { m.Tasks[0].Timers[0].TID = 1001 }},
		{"tasks[0].timers[0].value", func(m *M) { m.Tasks[0].Timers[0].Value = -1 }},
		{"tasks[0].timers[1].id", func(m *M) { m.Tasks[0].Timers = append(m.Tasks[0].Timers, m.Tasks[0].Timers[0]) }},
		{"tasks[0].rlimits[0].cur", func(m *M) { m.Tasks[0].Rlimits[0] = image.Rlimit{Cur: 2, Max: 1} }},
		{"tasks[0].rlimits", func(m *M) { m.Tasks[0].Rlimits = make([]image.Rlimit, 99) }},
		{"tasks[0].threads", func(m *M) { m.Tasks[0].Threads = nil }},
		{"tasks[0].threads[0].tid", func(m *M) { m.Tasks[0].Threads[0].TID = 1004 }},
		{"tasks[0].threads[1].tid", func(m *M) { m.Tasks[0].Threads[1].TID = 1000 }},
		{"tasks[0].threads[1].tid", func(m *M) { m.Tasks[0].Threads[1].TID = -3 }},
		{"tasks[0].threads[1].regs", func(m *M) { m.Tasks[0].Threads[1].Regs = nil }},
		{"tasks[0].threads[1].xstate", func(m *M) { m.Tasks[0].Threads[1].XState = make([]byte, 2<<20) }},
		{"tasks[0].threads[1].fd_table", func(m *M) { m.Tasks[0].Threads[1].FDTable = 2 }},
		{"tasks[0].threads[1].fs", func(m *M) { m.Tasks[0].Threads[1].FS = 0 }},
		{"tasks[0].threads[1].sched.policy", func(m *M) { m.Tasks[0].Threads[1].Sched.Policy = 8 }},
		{"tasks[0].threads[1].sched.nice", func(m *M) { m.Tasks[0].Threads[1].Sched.Nice = 20 }},
		{"tasks[0].threads[1].blocked.remaining", func(m *M) { m.Tasks[0].Threads[1].Blocked = &image.Blocked{Remaining: -3} }},
		{"tasks[0].threads[1].seccomp[0].filter", func(m *M) { m.Tasks[0].Threads[1].Seccomp = []image.Seccomp{{Filter: make([]byte, 7)}} }},
		{"tasks[0].threads[1].seccomp", func(m *M) { m.Tasks[0].Threads[1].Seccomp = make([]image.Seccomp, 2000) }},
		{"tasks[0].xcomp_perm", func(m *M) { m.Tasks[0].XCompPerm = 1 << 19 }},
		{"host.xcomponents[0].bit", func(m *M) { m.Host.XComponents = []image.XComponent{{Bit: 1, Off: 576, Size: 8}} }},
		{"host.xcomponents[1].bit", func(m *M) {
			m.Host.XComponents = []image.XComponent{{Bit: 2, Off: 576, Size: 8}, {Bit: 2, Off: 584, Size: 8}}
		}},
		{"host.xcomponents[0].off", func(m *M) { m.Host.XComponents = []image.XComponent{{Bit: 2, Off: 512, Size: 8}} }},
		{"host.xcomponents[0].off", func(m *M) { m.Host.XComponents = []image.XComponent{{Bit: 2, Off: 1<<32 - 8, Size: 1<<32 - 1}} }},
		{"mms[0].leftovers[0].off", func(m *M) { m.MMs[0].Leftovers = []image.Leftover{{Off: 8190, Bytes: make([]byte, 3)}} }},
		{"mms[0].leftovers[0].off", func(m *M) { m.MMs[0].Leftovers = []image.Leftover{{Off: 1<<32 - 1, Bytes: make([]byte, 3)}} }},
		{"mms[0].leftovers", func(m *M) { m.MMs[0].Leftovers = make([]image.Leftover, 65) }},
		{"mms[0].auxv", func(m *M) { m.MMs[0].Auxv = make([]byte, 17) }},
		{"mms[0].auxv", func(m *M) { m.MMs[0].Auxv = make([]byte, 1<<20) }},
		{"mms[0].exe.path", func(m *M) { m.MMs[0].Exe.Path = "/a\x00" }},
		{"mms[0].exe.size", func(m *M) { m.MMs[0].Exe.Size = -1 }},
		{"mms[0].vmas[1].start", func(m *M) { anon(m).Start++ }},
		{"mms[0].vmas[1].end", func(m *M) { anon(m).End = anon(m).Start }},
		{"mms[0].vmas[4].end", func(m *M) { m.MMs[0].VMAs[4].End = 1 << 57 }},
		{"mms[0].vmas[1].start", func(m *M) { anon(m).Start -= 0x1000 }},
		{"mms[0].vmas[1].prot", func(m *M) { anon(m).Prot = 8 }},
		{"mms[0].vmas[1].offset", func(m *M) { anon(m).Offset = 1 }},
		{"mms[0].vmas[1].kind", func(m *M) { anon(m).Kind = 9 }},
		{"mms[0].vmas[1].flags", func(m *M) { anon(m).Flags = 3 }},
		{"mms[0].vmas[1].flags", func(m *M) { anon(m).Flags = 1 }},
		{"mms[0].vmas[1].file", func(m *M) { anon(m).File.Path = "/x" }},
		{"mms[0].vmas[0].file", func(m *M) { m.MMs[0].VMAs[0].File = image.MappedFile{} }},
		{"mms[0].vmas[0].flags", func(m *M) { m.MMs[0].VMAs[0].Kind = image.VMAFileShared }},
		{"mms[0].vmas[0].offset", func(m *M) { m.MMs[0].VMAs[0].Offset = 1 << 63 }},
		{"mms[0].vmas[1].segment", func(m *M) { anon(m).Segment = 1 }},
		{"mms[0].vmas[2].segment", func(m *M) { m.MMs[0].VMAs[2].Segment = 0 }},
		{"mms[0].vmas[2].segment", func(m *M) { m.MMs[0].VMAs[2].Segment = 2 }},
		{"mms[0].vmas[2].extents", func(m *M) {
			m.MMs[0].VMAs[2].Extents = []image.Extent{{Start: m.MMs[0].VMAs[2].Start, Len: 4096}}
		}},
		{"mms[0].vmas[1].vmflags[0]", func(m *M) { anon(m).VMFlags[0] = "rdwr" }},
		{"mms[0].vmas[1].vmflags", func(m *M) { anon(m).VMFlags = make([]string, 65) }},
		{"mms[0].vmas[1].name", func(m *M) { anon(m).Name = "\x00" }},
		{"mms[0].vmas[1].extents[1]", func(m *M) { anon(m).Extents[1].Start = anon(m).Extents[0].Start }},
		{"mms[0].vmas[1].extents[1]", func(m *M) { anon(m).Extents[1].Len = 0 }},
		{"mms[0].vmas[1].extents[1]", func(m *M) { anon(m).Extents[1].Start++ }},
		{"mms[0].vmas[1].extents[2]", func(m *M) { anon(m).Extents[2].Len = 1 << 40 }},
		{"mms[0].vmas[1].extents[2]", func(m *M) { anon(m).Extents[2].Len = 1<<64 - 4096 }},
		{"mms[0].vmas[1].extents[0]", func(m *M) { anon(m).Extents[0].Start -= 4096 }},
		{"mms[0].vmas[1].guards[0]", func(m *M) { anon(m).Guards = []image.Extent{{Start: anon(m).Start + 1, Len: 4096}} }},
		{"mms[0].vmas[1].guards[0]", func(m *M) { anon(m).Guards = []image.Extent{{Start: anon(m).End, Len: 4096}} }},
		{"mms[0].vmas[1].guards[1]", func(m *M) {
			anon(m).Guards = []image.Extent{{Start: anon(m).Start, Len: 8192}, {Start: anon(m).Start + 4096, Len: 4096}}
		}},
		{"mms[0].vmas[0].flags", func(m *M) { m.MMs[0].VMAs[0].Flags = 8 }},
		{"mms[0].vmas[1].guards[0]", func(m *M) { anon(m).Guards = []image.Extent{{Start: anon(m).End - 4096, Len: 1<<64 - 4096}} }},
		{"mms[0].vmas[1].guards[0]", func(m *M) { anon(m).Guards = []image.Extent{{Start: anon(m).Start + 0x1000, Len: 0x8000}} }},
		{"mms[0].vmas[1].guards[1]", func(m *M) {
			anon(m).Guards = []image.Extent{{Start: anon(m).Start + 0x1000, Len: 0x2000}, {Start: anon(m).Start + 0x2000, Len: 0x1000}}
		}},
		{"mms[0].vmas[1].guards[1]", func(m *M) {
			anon(m).Guards = []image.Extent{{Start: anon(m).Start + 0x1000, Len: 0x1000}, {Start: anon(m).Start + 0x2e000, Len: 0x2000}}
		}},
		{"mms[0].vmas[3].guards", func(m *M) {
			m.MMs[0].VMAs[3].Guards = []image.Extent{{Start: m.MMs[0].VMAs[3].Start, Len: 4096}}
		}},
		{"mms[0].vmas[1].aio", func(m *M) { anon(m).AIO = &image.AIO{MaxReqs: 1} }},
		{"mms[0].vmas[1].aio", func(m *M) { anon(m).Kind, anon(m).AIO = image.VMAAIO, nil }},
		{"mms[0].vmas[1].aio", func(m *M) { anon(m).Kind, anon(m).AIO = image.VMAAIO, &image.AIO{} }},
		{"mms[0].vmas[1].aio", func(m *M) { anon(m).Kind, anon(m).AIO = image.VMAAIO, &image.AIO{MaxReqs: 1 << 31} }},
		{"mms[0].vmas[1].aio", func(m *M) {
			anon(m).Kind, anon(m).AIO = image.VMAAIO, &image.AIO{MaxReqs: 1, Head: 1 << 31}
		}},
		{"mms[0].vmas[1].aio", func(m *M) {
			anon(m).Kind, anon(m).AIO = image.VMAAIO, &image.AIO{MaxReqs: 1, Tail: 2, Events: make([]byte, 32)}
		}},
		{"mms[0].vmas[1].flags", func(m *M) { anon(m).Kind, anon(m).AIO = image.VMAAIO, &image.AIO{MaxReqs: 1} }},
		{"mms[0].vmas[0].was", func(m *M) { m.MMs[0].VMAs[0].Was = "/a\x00" }},
		{"mms[0].exe_was", func(m *M) { m.MMs[0].ExeWas = strings.Repeat("/a", 1<<14) }},
		{"mms[0].exe_segment", func(m *M) { m.MMs[0].ExeSegment = 1 }},
		{"mms[0].exe_segment", func(m *M) { m.MMs[0].ExeSegment = 2 }},
		{"segments[0].huge", func(m *M) { huge(m).Huge = 12 }},
		{"segments[0].huge", func(m *M) { huge(m).Huge = 64 }},
		{"segments[0].huge", func(m *M) { huge(m).Huge = 1<<32 - 1 }},
		{"segments[0].huge", func(m *M) { huge(m).Huge, gone(m).Size = 21, 2<<20 }},
		{"segments[0].size", func(m *M) { huge(m).Size++ }},
		{"mms[0].vmas[2].start", func(m *M) {
			huge(m)
			m.MMs[0].VMAs[2].End = m.MMs[0].VMAs[2].Start + 2<<20 + 4096
		}},
		{"segments[0].xattrs", func(m *M) { gone(m).XAttrs = make([]image.XAttr, 5000) }},
		{"segments[0].path", func(m *M) { gone(m).Path = "tmp/x" }},
		{"segments[0].path", func(m *M) { gone(m).Path = "/tmp/../etc/shadow" }},
		{"mms[0].exe.path", func(m *M) { m.MMs[0].Exe.Path = "/bin/./sh" }},
		{"files[0].path", func(m *M) { m.Files[0].Path = "/tmp/../etc/shadow" }},
		{"fss[0].cwd", func(m *M) { m.FSs[0].Cwd = "/.." }},
		{"fss[0].root", func(m *M) { m.FSs[0].Root = "/a/.." }},
		{"segments[0].path", func(m *M) { gone(m).Path = "/tmp/" }},
		{"segments[0].path", func(m *M) { gone(m).Path = "/tmp/\x00" }},
		{"segments[0].path", func(m *M) { gone(m).Memfd = true }},
		{"segments[0].mode", func(m *M) { gone(m).Mode = 0o020666 }},
		{"segments[0].seals", func(m *M) { gone(m).Seals = 1 }},
		{"segments[0].xattrs[0].name", func(m *M) { gone(m).XAttrs = []image.XAttr{{Name: "security.capability", Value: []byte{1}}} }},
		{"segments[0].xattrs[0].name", func(m *M) { gone(m).XAttrs = []image.XAttr{{Name: "user.x", Value: make([]byte, 1<<17)}} }},
		{"segments[0].xattrs[0].name", func(m *M) { gone(m).XAttrs = []image.XAttr{{Name: "user." + strings.Repeat("x", 300)}} }},
		{"segments[0].xattrs", func(m *M) { m.Segments[0].XAttrs = []image.XAttr{{Name: "user.x", Value: []byte{1}}} }},
		{"segments[0].extents[1]", func(m *M) { m.Segments[0].Size = 296 << 10 }},
		{"segments[0].size", func(m *M) { m.Segments[0].Size = -1 }},
		{"segments[0].size", func(m *M) { m.Segments[0].Size = 1<<62 + 1 }},
		{"blobs[1].len", func(m *M) { m.Blobs[1].Len = -1 }},
		{"blobs[1].len", func(m *M) { m.Blobs[1].Len = 1<<63 - 1 }},
		{"fd_tables[0].fds[1].num", func(m *M) { m.FDTables[0].FDs[1].Num = 0 }},
		{"fd_tables[0].fds[0].num", func(m *M) { m.FDTables[0].FDs[0].Num = -1 }},
		{"fd_tables[0].fds[1].file", func(m *M) { m.FDTables[0].FDs[1].File = 3 }},
		{"fss[0].cwd", func(m *M) { m.FSs[0].Cwd = "tmp" }},
		{"fss[0].cwd_file.path", func(m *M) { m.FSs[0].CwdFile = image.File{Kind: "dir", Path: "/other"} }},
		{"fss[0].cwd_file", func(m *M) { m.FSs[0].CwdFile = image.File{Kind: "dir", Path: m.FSs[0].Cwd, Blob: 1} }},
		{"fss[0].root", func(m *M) { m.FSs[0].Root = "" }},
		{"fss[0].umask", func(m *M) { m.FSs[0].Umask = 0o1000 }},
		{"sighands[0].actions[0].signal", func(m *M) { m.Sighands[0].Actions[0].Signal = 9 }},
		{"sighands[0].actions[0].signal", func(m *M) { m.Sighands[0].Actions[0].Signal = 0 }},
		{"sighands[0].actions[1].signal", func(m *M) { m.Sighands[0].Actions = append(m.Sighands[0].Actions, m.Sighands[0].Actions[0]) }},
		{"files[0].kind", func(m *M) { m.Files[0].Kind = "" }},
		{"files[0].pos", func(m *M) { m.Files[0].Pos = -1 }},
		{"files[0].blob", func(m *M) { m.Files[0].Blob = 3 }},
		{"files[0].segment", func(m *M) { m.Files[0].Segment = 2 }},
		{"files[0].owner_by", func(m *M) { m.Files[0].OwnerBy = make([]uint32, 3) }},
		{"files[0].owner_start", func(m *M) { m.Files[0].OwnerStart = 7 }},
		{"files[0].locks", func(m *M) { m.Files[0].Locks = make([]image.Lock, 1<<17) }},
		{"files[0].locks[0].type", func(m *M) { m.Files[0].Locks = []image.Lock{{Type: 5, End: 1, PID: 1}} }},
		{"files[0].locks[0].start", func(m *M) { m.Files[0].Locks = []image.Lock{{Type: 2, Start: -1, End: 1, PID: 1}} }},
		{"files[0].locks[0].end", func(m *M) { m.Files[0].Locks = []image.Lock{{Type: 2, Start: 2, End: 1, PID: 1}} }},
		{"files[0].locks[0].end", func(m *M) { m.Files[0].Locks = []image.Lock{{Type: 1, End: 1, PID: 1}} }},
		{"files[0].locks[0].pid", func(m *M) { m.Files[0].Locks = []image.Lock{{Type: 3, End: 1}} }},
		{"files[0].locks[1].type", func(m *M) {
			l := image.Lock{Type: 4, End: 1<<63 - 1, PID: 1}
			m.Files[0].Locks = []image.Lock{l, l}
		}},
		{"files[0].owner.type", func(m *M) { m.Files[0].Owner.Type = 3 }},
		{"lost[0].severity", func(m *M) { m.Lost[0].Severity = image.Refuse }},
	} {
		spoiled(t, c.path, c.spoil)
	}
}

// spoiled expects an error about the field path, and that it is not written either.
func spoiled(t *testing.T, path string, spoil func(m *image.Manifest)) {
	t.Helper()
	m := imagetest.Manifest()
	if err := m.Validate(); err != nil {
		t.Fatalf("before %s: %v", path, err)
	}
	spoil(m)
	err := m.Validate()
	var field *image.FieldError
	if !errors.Is(err, image.ErrHostile) || !errors.As(err, &field) || field.Path != path {
		t.Errorf("%s: %v", path, err)
	}
	if _, _, err := image.Encode(m); !errors.Is(err, image.ErrHostile) {
		t.Errorf("%s is written: %v", path, err)
	}
}

func TestFeatures(t *testing.T) {
	m := imagetest.Manifest()
	m.Features = []string{"time travel"}
	err := m.Validate()
	if !errors.Is(err, image.ErrFeature) || !strings.Contains(err.Error(), "time travel") {
		t.Errorf("unknown feature: %v", err)
	}
}

// generic is the manifest of imagetest as maps and lists, to be spoiled below the types.
func generic(t *testing.T) map[any]any {
	t.Helper()
	var v map[any]any
	if err := cbor.Unmarshal(body(imagetest.Bytes(t, imagetest.Manifest(), nil)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// at follows keys and indexes down a generic manifest.
func at(v any, path ...any) map[any]any {
	for _, p := range path {
		switch c := v.(type) {
		case []any:
			v = c[p.(int)]
		case map[any]any:
			v = c[p.(uint64)]
		}
	}
	return v.(map[any]any)
}

const (
	tasks = uint64(5)
	mms   = uint64(6)
	files = uint64(10)
	u1    = uint64(1)
)

// What the types cannot hold is refused by name before it is decoded.
func TestStructure(t *testing.T) {
	for _, c := range []struct {
		want  error
		text  string
		spoil func(m map[any]any)
	}{
		{image.ErrFeature, "field 99", func(m map[any]any) { m[uint64(99)] = 1 }},
		{image.ErrFeature, "tasks[1].threads[0]", func(m map[any]any) { at(m, tasks, 1, uint64(12), 0)[uint64(77)] = "new" }},
		{image.ErrHostile, "tasks[0]", func(m map[any]any) { delete(at(m, tasks, 0), u1) }},
		{image.ErrHostile, "tasks[0].pid", func(m map[any]any) { at(m, tasks, 0)[u1] = uint64(1) << 31 }},
		{image.ErrHostile, "tasks[0].pid", func(m map[any]any) { at(m, tasks, 0)[u1] = "5" }},
		{image.ErrHostile, "tasks[0].pid", func(m map[any]any) { at(m, tasks, 0)[u1] = nil }},
		{image.ErrHostile, "tasks[0].pid", func(m map[any]any) { at(m, tasks, 0)[u1] = 5.5 }},
		{image.ErrHostile, "tasks[0].state", func(m map[any]any) { at(m, tasks, 0)[tasks] = 256 }},
		{image.ErrHostile, "tasks[0].mm", func(m map[any]any) { at(m, tasks, 0)[uint64(10)] = -1 }},
		{image.ErrHostile, "tasks[0].itimers", func(m map[any]any) { at(m, tasks, 0)[uint64(14)] = []any{} }},
		{image.ErrHostile, "tasks[0].comm", func(m map[any]any) { at(m, tasks, 0)[uint64(9)] = []int{1} }},
		{image.ErrHostile, "tasks[0].comm", func(m map[any]any) { at(m, tasks, 0)[uint64(9)] = make([]byte, 1<<17) }},
		{image.ErrHostile, "tasks", func(m map[any]any) { m[tasks] = nil }},
		{image.ErrHostile, "mms[0].vmas[0].thp", func(m map[any]any) { at(m, mms, 0, uint64(14), 0)[uint64(12)] = 1 }},
		{image.ErrHostile, "files[1].rec", func(m map[any]any) { at(m, files, 1)[uint64(6)] = cbor.Tag{Number: 1, Content: 1} }},
		{image.ErrHostile, "files[1].rec", func(m map[any]any) { at(m, files, 1)[uint64(6)] = []any{1, 0.5} }},
		{image.ErrHostile, "files[1].rec[0]", func(m map[any]any) { at(m, files, 1)[uint64(6)] = []any{cbor.SimpleValue(3)} }},
		{image.ErrHostile, "key after -1", func(m map[any]any) { clear(m); m["a"] = 1 }},
	} {
		m := generic(t)
		c.spoil(m)
		mode, err := cbor.CoreDetEncOptions().EncMode()
		if err != nil {
			t.Fatal(err)
		}
		b, err := mode.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(forge(b, nil)); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.text, err)
		}
	}
}

// Bytes that promise much and hold little.
func TestHugeCounts(t *testing.T) {
	deep := strings.Repeat("\x81", 100) + "\x00"
	for name, b := range map[string]string{
		"map of 2^60":           "\xbb\x10\x00\x00\x00\x00\x00\x00\x00",
		"tasks, 2^40 of them":   "\xaa\x01\x40\x02\x00\x03\xa0\x05\x9b\x00\x00\x01\x00\x00\x00\x00\x00",
		"tool of 2^63 bytes":    "\xaa\x01\x5b\x80\x00\x00\x00\x00\x00\x00\x00",
		"indefinite length":     "\xbf\x01\x40\xff",
		"break":                 "\xff",
		"reserved":              "\x1c",
		"cut number":            "\xa1\x01\x5b\x00",
		"not the shortest form": "\xa1\x18\x01\x40",
		"keys descend":          "\xaa\x02\x00\x01\x40",
		"a key twice":           "\xaa\x01\x40\x01\x40",
		"nested":                deep,
		"ends early":            "\xaa\x01",
		"zeros":                 "\x00",
	} {
		if err := check(forge([]byte(b), nil)); !errors.Is(err, image.ErrHostile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := imagetest.Manifest()
	m.Files[1].Rec = []byte(deep)
	if _, _, err := image.Encode(m); err == nil {
		t.Error("a record that is nested 100 deep is written")
	}
	if err := check(forge(append(body(imagetest.Bytes(t, imagetest.Manifest(), nil)), 0), nil)); !errors.Is(err, image.ErrHostile) {
		t.Errorf("a byte after the manifest: %v", err)
	}
}

// An image of more data than any machine has is refused without a list of its chunks.
func TestTooLarge(t *testing.T) {
	for name, m := range map[string]*image.Manifest{"3 TiB": dense(3 << 40), "64 PiB": dense(1<<56 - 1<<48)} {
		if _, _, err := image.Encode(m); !errors.Is(err, image.ErrHostile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := imagetest.Manifest()
	for range 5000 {
		m.Blobs = append(m.Blobs, image.Blob{Len: 1 << 50})
	}
	if _, _, err := image.Encode(m); !errors.Is(err, image.ErrHostile) {
		t.Errorf("blobs of 5 EiB: %v", err)
	}
}
