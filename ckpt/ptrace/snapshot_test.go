package ptrace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// snapshotOf makes a snapshot of a process, which goes on. Close the tracer at the end.
func snapshotOf(t *testing.T, tr *Tracer, pid int) *Snapshot {
	t.Helper()
	var s *Snapshot
	err := tr.Do(func() error {
		f, err := freeze(tr, pid)
		if err != nil {
			return err
		}
		if err := f.r.Enter(f.threads[0], f.states[0]); err != nil {
			return err
		}
		if s, err = f.r.Snapshot(time.Now().Add(patience)); err != nil {
			return errors.Join(err, f.thaw())
		}
		return f.thaw()
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSnapshotContent(t *testing.T) {
	cmd, words := startReady(t, nil, "memory")
	addr, err := strconv.ParseUint(words[0], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	tr := NewTracer()
	defer tr.Close()
	s := snapshotOf(t, tr, cmd.Process.Pid)
	first := sample(t, s, addr)
	time.Sleep(50 * time.Millisecond) // the target writes on
	if second := sample(t, s, addr); second != first {
		t.Errorf("the snapshot changed: %v, then %v", first, second)
	}
	if first[0] == 0 || first[0] < first[1] || first[1]+1 < first[0] {
		t.Errorf("the snapshot is not of one moment: %v", first)
	}
	if c := comm(s.PID); c != helperName {
		t.Errorf("it is named %q", c)
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID)); err != nil || len(fds) != 0 {
		t.Errorf("it holds %d files (%v)", len(fds), err)
	}
	if err := tr.Do(s.Close); err != nil {
		t.Error(err)
	}
	checkAlive(t, cmd.Process.Pid)
	checkUntouched(t, cmd.Process.Pid)
}

// sample reads the first and the last counter.
func sample(t *testing.T, s *Snapshot, addr uint64) (v [2]uint64) {
	t.Helper()
	var b [8]byte
	for i, off := range []uint64{0, 64<<20 - 4096} {
		if _, err := s.Mem().ReadAt(b[:], int64(addr+off)); err != nil {
			t.Fatal(err)
		}
		v[i] = binary.LittleEndian.Uint64(b[:])
	}
	return v
}

// The target waits for any child all the time, with and without __WALL, and must never
// find one: neither while the copy lives nor while it ends.
func TestSnapshotIsInvisible(t *testing.T) {
	cmd, _ := startReady(t, nil, "waitpoll")
	for range 20 {
		tr := NewTracer()
		s := snapshotOf(t, tr, cmd.Process.Pid)
		time.Sleep(2 * time.Millisecond)
		if err := tr.Do(s.Close); err != nil {
			t.Error(err)
		}
		tr.Close()
		time.Sleep(time.Millisecond)
		checkAlive(t, cmd.Process.Pid)
	}
	checkUntouched(t, cmd.Process.Pid)
}

// The copy of a subreaper, and of the init of a pid namespace, is its direct child: unseen
// by wait without __WALL, and reaped by Close.
func TestSnapshotOfReaper(t *testing.T) {
	for _, tc := range []struct {
		name string
		mode string
		attr *unix.SysProcAttr
	}{
		{"subreaper", "subreaper", nil},
		{"init", "subreaper", &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd, _ := startReady(t, tc.attr, tc.mode)
			pid := cmd.Process.Pid
			tr := NewTracer()
			defer tr.Close()
			s := snapshotOf(t, tr, pid)
			if s.parent != pid {
				t.Errorf("the copy's parent is %d", s.parent)
			}
			time.Sleep(5 * time.Millisecond)
			if err := tr.Do(func() error { return closeWhileTraced(tr, pid) }); err != nil {
				t.Error(err)
			}
			if err := tr.Do(s.Close); err != nil {
				t.Error(err)
			}
			checkAlive(t, pid)
			checkUntouched(t, pid)
		})
	}
}

// closeWhileTraced makes a second copy and closes it while the target is still stopped:
// its remains are left to the next Sweep, which is made here.
func closeWhileTraced(tr *Tracer, pid int) error {
	f, err := freeze(tr, pid)
	if err != nil {
		return err
	}
	if err := f.r.Enter(f.threads[0], f.states[0]); err != nil {
		return err
	}
	s, err := f.r.Snapshot(time.Now().Add(patience))
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	if !isHelperZombie(s.PID) {
		return fmt.Errorf("the copy %d is not recognized", s.PID)
	}
	return errors.Join(f.r.Sweep(pid, true), f.thaw())
}

// A process that may not have another process can be copied all the same, if we may lift
// its limit; else it is an error. Either way its limit is as before.
func TestSnapshotOverLimit(t *testing.T) {
	cmd, _ := startReady(t, nil, "limited")
	pid := cmd.Process.Pid
	inFrozen(t, pid, func(f *frozen) error {
		s, err := f.r.Snapshot(time.Now().Add(patience))
		if !mayRaiseLimits(t) {
			if !errors.Is(err, unix.EAGAIN) {
				t.Errorf("a snapshot over the limit: %v, want EAGAIN", err)
			}
			return nil
		}
		return errors.Join(err, s.Close())
	})
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !regexp.MustCompile(`Max processes +1 +1 `).Match(limits) {
		t.Errorf("its limits are\n%s (%v)", limits, err)
	}
	checkAlive(t, pid)
	checkUntouched(t, pid)
}

// mayRaiseLimits reports whether we have CAP_SYS_RESOURCE.
func mayRaiseLimits(t *testing.T) bool {
	t.Helper()
	s, err := statusField(os.Getpid(), "CapEff")
	if err != nil {
		t.Fatal(err)
	}
	caps, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return caps&(1<<unix.CAP_SYS_RESOURCE) != 0
}
