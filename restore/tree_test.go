package restore

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// behindLast is an id that the kernel gives out late: those before the last one it has given, as it goes around.
func behindLast(t *testing.T, most int) int {
	t.Helper()
	text, err := os.ReadFile("/proc/loadavg") // its last field, see proc_loadavg(5)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text))
	last, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatal(err)
	}
	if last -= 1000; last < 8000 {
		return most
	}
	return last
}

// liveJob is a job whose image is nothing but a tree with these shapes; the ids in them count
// from 1 and are replaced by free ones, 0 stands for our own session.
func liveJob(t *testing.T, shape []image.Task) (*job, hostIDs) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes processes with given ids and needs root")
	}
	spare, err := newSpares(nil)
	if err != nil {
		t.Fatal(err)
	}
	spare.last = behindLast(t, spare.last) - rand.IntN(4000) // so that two runs of this test do not meet
	own, err := ownIDs()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[int32]int32{0: int32(own.SID)}
	id := func(n int32) int32 {
		if _, ok := ids[n]; !ok {
			pid, err := spare.next()
			if err != nil {
				t.Fatal(err)
			}
			ids[n] = int32(pid)
		}
		return ids[n]
	}
	m := &image.Manifest{}
	for _, s := range shape {
		s.PID, s.PPID, s.PGID, s.SID = id(s.PID), id(s.PPID), id(s.PGID), id(s.SID)
		m.Tasks = append(m.Tasks, s)
	}
	j := &job{m: m, depot: newDepot(), deadline: time.Now().Add(20 * time.Second), hole: holeMin, channel: [2]int{-1, -1}, byNode: map[int]*proc{}, tr: ptrace.NewTracer()}
	j.opt.Log = func(s string) { t.Log(s) }
	t.Cleanup(j.close)
	return j, own
}

func TestGrowTree(t *testing.T) {
	running, zombie := image.TaskRunning, image.TaskZombie
	chld := int32(unix.SIGCHLD)
	shape := []image.Task{
		{PID: 1, PPID: 99, PGID: 1, SID: 50, State: running, ExitSignal: chld},                                                // its session has lost its leader
		{PID: 2, PPID: 1, PGID: 2, SID: 2, State: running, ExitSignal: chld},                                                  // a session of its own
		{PID: 3, PPID: 2, PGID: 60, SID: 50, State: running, ExitSignal: chld},                                                // forked before that; a group without leader
		{PID: 4, PPID: 2, PGID: 2, SID: 2, State: zombie, ExitSignal: chld, Comm: "done (7)", ExitStatus: 7 << 8},             //
		{PID: 5, PPID: 1, PGID: 1, SID: 50, State: zombie, ExitSignal: chld, Comm: "killed", ExitStatus: int32(unix.SIGTERM)}, //
		{PID: 6, PPID: 1, PGID: 70, SID: 70, State: running, ExitSignal: chld},                                                // adopted from a session whose leader is gone
		{PID: 7, PPID: 1, PGID: 60, SID: 50, State: running, ExitSignal: 0},
	}
	j, own := liveJob(t, shape)
	p, err := planTree(j.m.Tasks, own)
	if err != nil {
		t.Fatal(err)
	}
	grown := func() error {
		if err := j.plant(); err != nil {
			return err
		}
		return j.grow(context.Background(), p)
	}
	err = j.tr.Do(func() error {
		defer j.killAll()
		if err := grown(); err != nil {
			return err
		}
		for i := range j.m.Tasks {
			compareTask(t, &j.m.Tasks[i], i == 0)
		}
		// No trace of the zombies' ends is left in their parents.
		for _, p := range j.alive() {
			if got, err := p.threads[0].PeekSiginfo(true); err != nil || len(got) != 0 {
				t.Errorf("pid %d has %d signals pending, %v", p.pid, len(got), err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := waitPIDs(t.Context(), wantedPIDs(j.m), time.Now().Add(reapPatience)); err != nil {
		t.Error(err)
	}
}

func compareTask(t *testing.T, want *image.Task, root bool) {
	t.Helper()
	st, err := readStat(int(want.PID))
	if err != nil {
		t.Error(err)
		return
	}
	if !root && st.PPID != int(want.PPID) || st.PGID != int(want.PGID) || st.SID != int(want.SID) || st.ExitSignal != int(want.ExitSignal) {
		t.Errorf("pid %d: parent %d group %d session %d exit signal %d, want %d %d %d %d", want.PID,
			st.PPID, st.PGID, st.SID, st.ExitSignal, want.PPID, want.PGID, want.SID, want.ExitSignal)
	}
	if want.State == image.TaskZombie && (st.State != 'Z' || st.ExitCode != int(want.ExitStatus) || st.Comm != want.Comm) {
		t.Errorf("zombie %d: state %c status %#x name %q, want %#x %q", want.PID, st.State, st.ExitCode, st.Comm, want.ExitStatus, want.Comm)
	}
}

func TestPIDTakenWhileGrowing(t *testing.T) {
	j, own := liveJob(t, []image.Task{
		{PID: 1, PPID: 99, PGID: 1, SID: 1, State: image.TaskRunning, ExitSignal: int32(unix.SIGCHLD)},
		{PID: 2, PPID: 1, PGID: 1, SID: 1, State: image.TaskRunning, ExitSignal: int32(unix.SIGCHLD)},
	})
	j.m.Tasks[1].PID = int32(os.Getpid())
	p, err := planTree(j.m.Tasks, own)
	if err != nil {
		t.Fatal(err)
	}
	err = j.tr.Do(func() error {
		defer j.killAll()
		if err := j.plant(); err != nil {
			return err
		}
		return j.grow(context.Background(), p)
	})
	var taken *PIDTakenError
	if !errors.As(err, &taken) || taken.PID != os.Getpid() || taken.Comm == "" {
		t.Errorf("got %v", err)
	}
	if err := waitPIDs(t.Context(), map[int]bool{int(j.m.Tasks[0].PID): true}, time.Now().Add(reapPatience)); err != nil {
		t.Error(err)
	}
}

// TestTracerDies checks that no stub outlives the tracing thread.
func TestTracerDies(t *testing.T) {
	j, own := liveJob(t, []image.Task{
		{PID: 1, PPID: 99, PGID: 1, SID: 1, State: image.TaskRunning, ExitSignal: int32(unix.SIGCHLD)},
		{PID: 2, PPID: 1, PGID: 1, SID: 1, State: image.TaskRunning, ExitSignal: int32(unix.SIGCHLD)},
	})
	p, err := planTree(j.m.Tasks, own)
	if err != nil {
		t.Fatal(err)
	}
	err = j.tr.Do(func() error {
		if err := j.plant(); err != nil {
			return err
		}
		return j.grow(context.Background(), p)
	})
	if err != nil {
		t.Fatal(err)
	}
	seedPID := j.byNode[seed].pid
	j.tr.Close()
	if err := reap(seedPID); err != nil {
		t.Error(err)
	}
	if err := waitPIDs(t.Context(), wantedPIDs(j.m), time.Now().Add(reapPatience)); err != nil {
		t.Error(err)
	}
}
