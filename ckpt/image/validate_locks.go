package image

const maxLocks = 1 << 16 // of one open file description: a lock costs the kernel some 200 bytes

// ownerBy checks who named the owner of a file.
func (f *File) ownerBy() error {
	if n := len(f.OwnerBy); n != 0 && n != 2 {
		return bad("owner_by", "has %d ids, not two", n)
	}
	if f.OwnerStart != 0 && f.OwnerBy == nil {
		return bad("owner_start", "stands without owner_by")
	}
	return nil
}

// locks checks the locks and leases of a file. Whether their processes have it open is for the
// restore to check.
func (f *File) locks() error {
	if len(f.Locks) > maxLocks {
		return bad("locks", "has %d of them", len(f.Locks))
	}
	leases := 0
	for i, l := range f.Locks {
		err := first(
			within("type", int64(l.Type), int64(LockFlock), int64(LockLease)),
			within("start", l.Start, 0, 1<<63-1),
			within("end", l.End, l.Start, 1<<63-1),
			within("pid", int64(l.PID), 1, maxPID),
		)
		whole := l.Type == LockFlock || l.Type == LockLease
		if err == nil && whole && (l.Start != 0 || l.End != 1<<63-1) {
			err = bad("end", "a lock of the whole file covers %d to %d", l.Start, l.End)
		}
		if l.Type == LockLease {
			leases++
		}
		if err == nil && leases > 1 {
			err = bad("type", "a file has one lease")
		}
		if err != nil {
			return at(err, "locks[%d]", i)
		}
	}
	return nil
}
