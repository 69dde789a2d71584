package kind

import (
	"fmt"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// held refuses what processes hold on an open file beside its own state and a restore cannot give
// back: some leases, and F_NOTIFY. Every kind's Check begins with it.
func held(f *Found, s *Scene) []image.Finding {
	if f.Flags&unix.O_PATH != 0 {
		return nil // it can hold nothing
	}
	var all []image.Finding
	for _, l := range f.Locks {
		what, remedy := "", "give the lease back (F_SETLEASE with F_UNLCK) before the checkpoint"
		switch {
		case lockTypes[l.Type] == 0 && l.Type != "DELEG":
			what, remedy = fmt.Sprintf("it holds a lock that this version does not know (type %q)", l.Type), "release the lock before the checkpoint"
		case l.Type == "DELEG":
			what, remedy = "it holds a delegation, which a restore cannot take again", "close it before the checkpoint"
		case l.Type != "LEASE":
			continue
		case l.State != "ACTIVE":
			what = "its lease is being broken: another process waits to open the file until it gives the lease back, and a new lease would not know of that"
			remedy = "let it answer the SIGIO first: try again in a moment"
		default:
			what = leaseRefusal(f, s, l.Mode == "WRITE")
			all = append(all, f.leaseNumber(&l)...)
		}
		if what != "" {
			all = append(all, f.refuse(what, remedy))
		}
	}
	return append(all, f.notifies()...)
}

// leaseRefusal tells why a lease cannot be taken again, or "".
func leaseRefusal(f *Found, s *Scene, write bool) string {
	_, where := locate(f, s)
	switch {
	case !regular{}.Match(f) || where != atPath:
		return "it holds a lease (F_SETLEASE) on a file that has no name, and such a file is made anew in ways that a lease forbids"
	case write && s.Maps != nil && s.Maps(f.Stat.Dev, f.Stat.Ino):
		return "it holds a lease for writing (F_SETLEASE, F_WRLCK) on a file that is also mapped, which is opened once more for that by a restore"
	}
	return ""
}

// leaseNumber tells that the signal about a lease may name another descriptor. With F_SETSIG it names
// the one by which the lease was taken, which nobody can read; a restore takes it by the lowest.
func (f *Found) leaseNumber(l *HeldLock) []image.Finding {
	n := 0
	for _, at := range f.Slots {
		if at.PID == int32(l.PID) {
			n++
		}
	}
	if n < 2 || f.Owner.Signal == 0 {
		return nil
	}
	return []image.Finding{f.lose(fmt.Sprintf("it holds a lease, and is open under %d numbers: signal %d about the lease will name the lowest of them, whatever it names now (si_fd)", n, f.Owner.Signal),
		"keep a single descriptor of a leased file")}
}

// leased tells whether anything holds a lease on f: then opening it anew may break the lease.
func (f *Found) leased() bool {
	for _, l := range f.Locks {
		if l.Type == "LEASE" {
			return true
		}
	}
	return false
}

// notifies refuses a directory that may be watched with F_NOTIFY. The kernel tells nobody whether
// it is, but F_NOTIFY names an owner for the signals, which directories have for nothing else.
func (f *Found) notifies() []image.Finding {
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFDIR || f.Owner.PID == 0 {
		return nil
	}
	return []image.Finding{f.refuse("it may be watched with F_NOTIFY of fcntl(2): it has an owner for signals, and what is watched cannot be read",
		"close it before the checkpoint, or end the watch and call fcntl(fd, F_SETOWN, 0)")}
}

// lockedAway refuses the locks of a file that may come back as another one.
func (f *Found) lockedAway(why string) []image.Finding {
	if len(f.Locks) == 0 {
		return nil
	}
	return []image.Finding{f.refuse("it holds a lock, and "+why, "release the lock before the checkpoint")}
}
