package ckpt

import (
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
)

// captured is what captureFiles has read.
type captured struct {
	files  []image.File
	tables []image.FDTable // one for each of the processes, in their order; a shared one is the first one's; then those of threads
	ttys   map[uint64]image.ObjRef
	ctl    map[int]image.ObjRef // terminals by session, of those whose master is in the tree
	lost   []image.Finding
	err    error
}

// captureFiles reads the open files in a goroutine of its own. The kinds are asked again: the
// tree is still now, so what they say is final.
func (c *Checkpoint) captureFiles(s *survey, pids []int) <-chan captured {
	out := make(chan captured, 1)
	c.reading.Add(1)
	go ptrace.Hurried(func() {
		defer c.reading.Done()
		got, err := c.readFiles(s, pids)
		got.err = err
		out <- got
	})
	return out
}

func (c *Checkpoint) readFiles(s *survey, pids []int) (got captured, err error) {
	step := c.op.Step("files", s.root)
	fds := 0
	defer func() { step.Count("fds", int64(fds)).Count("files", int64(len(got.files))).End(err) }()
	set, err := collectFiles(c.tables, c.tr.tids(), s.socks)
	if err != nil {
		return got, err
	}
	for _, slots := range set.slots {
		fds += len(slots)
	}
	defer set.close()
	sc := s.scene(set) // with the answers about other processes that the look has got
	sc.Still, sc.Tracers = true, c.tr.tids()
	if c.o.After != Resume || c.frozen {
		sc.Hush = c.hush
	}
	sc.Blob, sc.Segment, sc.Gone = c.blob, c.segs.ofFile, c.segs.ofGoneFile
	step.Count("sockets", int64(set.socks)).Count("known", int64(set.known))
	got.lost = set.check(sc)
	if err := image.Refusals(got.lost); err != nil {
		return got, err
	}
	if got.files, err = set.dump(sc, &holders{pids, c.tables}); err != nil {
		return got, err
	}
	for _, pid := range pids {
		got.tables = append(got.tables, set.table(pid))
	}
	for _, id := range c.tables.ids {
		if c.tables.own[id] != 0 {
			got.tables = append(got.tables, set.table(id))
		}
	}
	got.ttys, got.ctl = terminals(set.found), sc.Controlled()
	return got, nil
}

// addFiles puts what captureFiles has read into the manifest.
func (c *Checkpoint) addFiles(got captured) {
	c.m.Files, c.m.FDTables, c.m.Lost = got.files, got.tables, append(c.m.Lost, got.lost...)
	for i := range c.m.Tasks {
		if t := &c.m.Tasks[i]; t.SID == t.PID && c.ttys[t.PID] != 0 {
			if t.CtlTTY = got.ctl[int(t.PID)]; t.CtlTTY == 0 {
				t.CtlTTY = got.ttys[ttyDev(c.ttys[t.PID])]
			}
		}
		if t := &c.m.Tasks[i]; t.CtlTTY == 0 {
			t.Foreground = 0
		}
	}
	c.foreground()
}

// blob is kind.Scene.Blob.
func (c *Checkpoint) blob(b []byte) image.ObjRef {
	c.blobs = append(c.blobs, b)
	c.m.Blobs = append(c.m.Blobs, image.Blob{Len: int64(len(b))})
	return image.ObjRef(len(c.blobs))
}
