package ptrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// helperName is the name that helper processes take.
const helperName = "ckptfs-helper"

// Sweep removes, by calls in the entered thread of process pid, what a predecessor that
// was killed left behind: scratch mappings and zombies of helper processes. (The bytes of
// the vdso are put back by Close.) Zombies are looked for only if there may be some.
func (r *Remote) Sweep(pid int, zombies bool) error {
	err := r.sweepMaps(pid)
	if zombies {
		err = errors.Join(err, r.sweepZombies(pid))
	}
	return err
}

// sweepMaps unmaps scratch mappings that are not this Remote's.
func (r *Remote) sweepMaps(pid int) error {
	for _, s := range r.leftScratch() {
		if slices.Contains(r.keptScratch, s.start) {
			continue
		}
		r.text = nil
		if _, err := r.Syscall(unix.SYS_MUNMAP, s.start, scratchSize); err != nil {
			return fmt.Errorf("pid %d: unmap the leftover at %#x: %w", pid, s.start, err)
		}
	}
	return nil
}

// leftScratch returns the scratch mappings of predecessors.
func (r *Remote) leftScratch() []span {
	var out []span
	noted, maps := r.leftNotes(), r.maps // which do not hold our own
	for i, v := range maps {
		if !isSharedAnon(v) || !r.isLeftover(v, noted) {
			continue
		}
		end := v.end
		if i+1 < len(maps) && maps[i+1].file == v.file && maps[i+1].start == end {
			end = maps[i+1].end // the page with the code
		}
		if end-v.start == scratchSize {
			out = append(out, span{v.start, end})
		}
	}
	return out
}

func isSharedAnon(v vma) bool {
	return v.perms == "rw-s" && strings.HasPrefix(v.path, "/dev/zero")
}

// isLeftover reports whether a shared anonymous mapping is the scratch memory of a dead
// predecessor: it carries the magic, or has not come to that but is where the frame says.
func (r *Remote) isLeftover(v vma, noted []uint64) bool {
	if n := v.end - v.start; n != scratchSize && n != scratchSize-pageSize {
		return false
	}
	b := make([]byte, len(scratchMagic))
	if _, err := r.mem.ReadAt(b, int64(v.start)); err != nil {
		return false
	}
	return bytes.Equal(b, scratchMagic) || slices.Contains(noted, v.start) && bytes.Equal(b, make([]byte, len(b)))
}

// leftNotes returns the scratch addresses in the frames that were found in the vdso.
func (r *Remote) leftNotes() []uint64 {
	var out []uint64
	for b := r.vdso.left; ; {
		_, after, ok := bytes.Cut(b, frameMagic)
		if !ok || len(after) < frameNoteLen {
			return out
		}
		out = append(out, binary.LittleEndian.Uint64(after))
		b = after
	}
}

// sweepZombies reaps helpers of a predecessor.
func (r *Remote) sweepZombies(pid int) error {
	tids, err := tasks(pid)
	if err != nil {
		return fmt.Errorf("pid %d: look for leftovers: %w", pid, err)
	}
	for _, tid := range tids {
		for _, child := range children(pid, tid) {
			if !isHelperZombie(child) {
				continue
			}
			if err := r.reap(innerPID(child, pid)); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitHelpers waits until no helper of a killed predecessor runs any more in the memory
// of a process. Helpers end by themselves, but on code in the frame that we are about to
// overwrite, and a busy machine may not have come to that.
func awaitHelpers(pid int) error {
	tids, err := tasks(pid)
	if err != nil {
		return fmt.Errorf("pid %d: look for leftovers: %w", pid, err)
	}
	deadline := time.Now().Add(settleTime)
	for _, tid := range tids {
		for _, child := range children(pid, tid) {
			for runsIn(child, pid) {
				if time.Now().After(deadline) {
					return fmt.Errorf("pid %d: its child %d, left by a killed checkpoint, does not end: kill it", pid, child)
				}
				time.Sleep(minPause)
			}
		}
	}
	return nil
}

// runsIn reports whether a child without exit signal is alive and shares the memory of its parent.
func runsIn(child, parent int) bool {
	st, err := readStat(child)
	if err != nil || st.state == 'Z' || st.exitSignal != 0 {
		return false
	}
	const kcmpVM = 1
	r, _, e := unix.RawSyscall6(unix.SYS_KCMP, uintptr(parent), uintptr(child), kcmpVM, 0, 0, 0)
	if e == unix.ESRCH {
		return false
	}
	return e != 0 || r == 0 // not to be compared: to be on the safe side
}

// isHelperZombie reports whether a process is the remains of one of our helpers: dead, with
// no signal to its parent, and with our name, or our exit code if it died before it had one.
func isHelperZombie(pid int) bool {
	st, err := readStat(pid)
	if err != nil || st.state != 'Z' || st.exitSignal != 0 {
		return false
	}
	return st.comm == helperName || st.exitCode == helperExit<<8
}

// reap waits for a dead child of the entered process, by the number it has there. A child
// that is already reaped is no error.
func (r *Remote) reap(nspid int) error {
	for deadline := r.deadline(); ; {
		got, err := r.Syscall(unix.SYS_WAIT4, uint64(nspid), 0, unix.WALL|unix.WNOHANG, 0)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return fmt.Errorf("pid %d: reap child %d: %w", r.pid, nspid, err)
		case got != 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("pid %d: child %d does not end", r.pid, nspid)
		}
	}
}

// innerPID is the number of a process in the pid namespace of another one, which is a
// namespace below ours or ours.
func innerPID(pid, of int) int {
	f := nsPIDs(pid)
	if n := len(nsPIDs(of)); n > 0 && n <= len(f) {
		return f[n-1]
	}
	return pid
}

// nsPIDs returns the numbers of a process in our pid namespace and those inside it.
func nsPIDs(pid int) []int {
	s, err := statusField(pid, "NSpid")
	if err != nil {
		return nil
	}
	var out []int
	for f := range strings.FieldsSeq(s) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil
		}
		out = append(out, n)
	}
	return out
}
