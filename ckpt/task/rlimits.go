package task

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// limitNames are the resources of getrlimit(2) by number: as /proc/PID/limits calls them,
// and the constant.
var limitNames = [...]struct{ proc, name string }{
	{"Max cpu time", "RLIMIT_CPU"}, {"Max file size", "RLIMIT_FSIZE"}, {"Max data size", "RLIMIT_DATA"},
	{"Max stack size", "RLIMIT_STACK"}, {"Max core file size", "RLIMIT_CORE"}, {"Max resident set", "RLIMIT_RSS"},
	{"Max processes", "RLIMIT_NPROC"}, {"Max open files", "RLIMIT_NOFILE"}, {"Max locked memory", "RLIMIT_MEMLOCK"},
	{"Max address space", "RLIMIT_AS"}, {"Max file locks", "RLIMIT_LOCKS"}, {"Max pending signals", "RLIMIT_SIGPENDING"},
	{"Max msgqueue size", "RLIMIT_MSGQUEUE"}, {"Max nice priority", "RLIMIT_NICE"},
	{"Max realtime priority", "RLIMIT_RTPRIO"}, {"Max realtime timeout", "RLIMIT_RTTIME"},
}

// infinity is RLIM_INFINITY.
const infinity = math.MaxUint64

// readRlimits reads /proc/PID/limits: unlike prlimit(2), which asks for CAP_SYS_RESOURCE where the
// target belongs to another user, it needs no privilege.
func readRlimits(pid int) ([]image.Rlimit, error) {
	b, err := quickread.File(taskPath(pid, 0, "limits"))
	if err != nil {
		return nil, err
	}
	return parseLimits(b)
}

// parseLimits parses /proc/PID/limits: lines of a name, the soft and the hard limit.
func parseLimits(b []byte) ([]image.Rlimit, error) {
	all := make([]image.Rlimit, len(limitNames))
	for i, n := range limitNames {
		_, rest, ok := bytes.Cut(b, []byte("\n"+n.proc+" "))
		if !ok {
			return nil, fmt.Errorf("limits: no line %q", n.proc)
		}
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		f := bytes.Fields(line)
		if len(f) < 2 {
			return nil, fmt.Errorf("limits: %q: want two limits in %q", n.proc, line)
		}
		var err1, err2 error
		all[i].Cur, err1 = parseLimit(f[0])
		all[i].Max, err2 = parseLimit(f[1])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("limits: %q: %w", n.proc, err)
		}
	}
	return all, nil
}

func parseLimit(b []byte) (uint64, error) {
	if string(b) == "unlimited" {
		return infinity, nil
	}
	return strconv.ParseUint(string(b), 10, 64)
}

// limitText is a limit as a user writes it.
func limitText(v uint64) string {
	if v == infinity {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}

// LimitError says that a hard limit cannot be raised to what it was.
type LimitError struct {
	PID       int
	Resource  int    // RLIMIT_*
	Want, Has uint64 // the hard limits; RLIM_INFINITY is all ones
	Err       error
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("pid %d: its hard limit %s was %s, here it is %s, and raising it needs CAP_SYS_RESOURCE: raise it for the restoring process (prlimit, ulimit -H) or restore with that capability",
		e.PID, resourceName(e.Resource), limitText(e.Want), limitText(e.Has))
}

func (e *LimitError) Unwrap() error { return e.Err }

func resourceName(r int) string {
	if r < len(limitNames) {
		return limitNames[r].name
	}
	return fmt.Sprintf("RLIMIT %d", r)
}

// writeRlimits sets the limits of another process from outside.
func writeRlimits(pid int, want []image.Rlimit) error {
	has, err := readRlimits(pid)
	if err != nil {
		return err
	}
	for r, l := range want {
		if r < len(has) && has[r] == l {
			continue
		}
		err := unix.Prlimit(pid, r, &unix.Rlimit{Cur: l.Cur, Max: l.Max}, nil)
		switch {
		case err == nil:
		case errors.Is(err, unix.EPERM) && r < len(has) && l.Max > has[r].Max:
			return &LimitError{PID: pid, Resource: r, Want: l.Max, Has: has[r].Max, Err: err}
		default:
			return fmt.Errorf("pid %d: set %s to %s (hard %s): %w", pid, resourceName(r), limitText(l.Cur), limitText(l.Max), err)
		}
	}
	return nil
}

// checkRlimits says whether a child of this process can get the limits.
func checkRlimits(pid int, want []image.Rlimit, own ownCaps) error {
	if own.prm&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return nil
	}
	has, err := readRlimits(unix.Getpid())
	if err != nil {
		return err
	}
	for r, l := range want {
		if r < len(has) && l.Max > has[r].Max {
			return &LimitError{PID: pid, Resource: r, Want: l.Max, Has: has[r].Max, Err: unix.EPERM}
		}
	}
	return nil
}
