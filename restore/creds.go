package restore

import (
	"fmt"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// checkCaller checks that the caller of a restore ends up with nothing he does not have: only
// processes with his own user and groups and without privileges.
func checkCaller(m *image.Manifest, uid int) error {
	if uid <= 0 {
		return nil
	}
	groups, err := groupsOf(uid)
	if err != nil {
		return err
	}
	for i := range m.Tasks {
		t := &m.Tasks[i]
		for j := range t.Threads {
			th := &t.Threads[j]
			if what := exceeds(t, th, uint32(uid), groups); what != "" {
				return &AccessError{int(t.PID), int(th.TID), uid, what}
			}
		}
	}
	what := exceedsSysV(m, uint32(uid), groups)
	if what == "" {
		what = exceedsIPC(m, uint32(uid), groups)
	}
	if what != "" {
		return &AccessError{int(m.Tasks[0].PID), int(m.Tasks[0].PID), uid, what}
	}
	return nil
}

// exceeds names the first thing of a thread that a user with this uid and these groups could
// not have given it himself, or "".
func exceeds(t *image.Task, th *image.Thread, uid uint32, groups []uint32) string {
	c := &th.Creds
	for _, u := range c.UID {
		if u != uid {
			return fmt.Sprintf("it runs as uid %d", u)
		}
	}
	for _, g := range append(c.GID[:], c.Groups...) {
		if !slices.Contains(groups, g) {
			return fmt.Sprintf("it has group %d", g)
		}
	}
	switch {
	case c.Prm|c.Eff|c.Inh|c.Amb != 0:
		return fmt.Sprintf("it has the capabilities %#x", c.Prm|c.Inh|c.Amb)
	case c.Securebits != 0:
		return fmt.Sprintf("it has the securebits %#x", c.Securebits)
	case th.Sched.Policy == unix.SCHED_FIFO || th.Sched.Policy == unix.SCHED_RR || th.Sched.Policy == unix.SCHED_DEADLINE:
		return fmt.Sprintf("it has the real-time scheduling policy %d", th.Sched.Policy)
	case th.Sched.Nice < 0:
		return fmt.Sprintf("it has the nice value %d", th.Sched.Nice)
	case t.OOMScoreAdj < 0:
		return fmt.Sprintf("it has the oom_score_adj %d", t.OOMScoreAdj)
	}
	return ""
}

// groupsOf returns all groups of a user.
func groupsOf(uid int) ([]uint32, error) {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return nil, fmt.Errorf("find out the groups of uid %d: %w", uid, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("find out the groups of uid %d: %w", uid, err)
	}
	var out []uint32
	for _, s := range append(ids, u.Gid) {
		g, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("group %q of uid %d: %w", s, uid, err)
		}
		out = append(out, uint32(g))
	}
	return out, nil
}

// asUser runs f on an OS thread that has the filesystem credentials c: filesystem uid and gid,
// groups and effective capabilities, so that it can open what the process could open and
// nothing else. The thread ends with f, so its credentials never reach other goroutines.
func asUser(c *image.Creds, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := becomeUser(c); err != nil {
			done <- fmt.Errorf("take the filesystem credentials of uid %d: %w", c.UID[3], err)
			return
		}
		done <- f()
	}()
	return <-done
}

// becomeUser changes the credentials of the calling thread alone: raw system calls, since
// those of package syscall change every thread of the process. The filesystem uid comes
// before the capabilities, as changing it takes some of them away.
func becomeUser(c *image.Creds) error {
	var hdr = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	var groups unsafe.Pointer
	if len(c.Groups) > 0 {
		groups = unsafe.Pointer(&c.Groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.Groups)), uintptr(groups), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	for _, s := range []struct {
		name string
		nr   uintptr
		id   uint32
	}{{"setfsgid", unix.SYS_SETFSGID, c.GID[3]}, {"setfsuid", unix.SYS_SETFSUID, c.UID[3]}} {
		unix.RawSyscall(s.nr, uintptr(s.id), 0, 0)
		now, _, _ := unix.RawSyscall(s.nr, ^uintptr(0), 0, 0) // it returns the id before, and -1 changes nothing
		if uint32(now) != s.id {
			return fmt.Errorf("%s %d: %w", s.name, s.id, unix.EPERM)
		}
	}
	for i := range have {
		have[i].Effective = have[i].Permitted & uint32(c.Eff>>(32*i))
	}
	if err := unix.Capset(&hdr, &have[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
