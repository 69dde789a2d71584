package ckpt

import (
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
)

// holders knows the processes of a tree that hold locks or are named as owners of files.
type holders struct {
	pids   []int
	tables *tables
}

// describe fills in who gets SIGIO for a file, and its locks.
func (h *holders) describe(f *kind.Found, rec *image.File) {
	rec.Locks = f.Records(h.taker)
	rec.Owner = f.Owner
	if f.Owner.PID == 0 {
		return
	}
	rec.OwnerBy = kind.ReadOwnerBy(f.FD)
	if rec.OwnerBy != nil && !h.has(f.Owner) {
		if st, err := readStat(int(f.Owner.PID)); err == nil { // a group may have no leader any more
			rec.OwnerStart = st.StartTime
		}
	}
}

// has reports whether an owner is a process, thread or group of the tree.
func (h *holders) has(o image.FOwner) bool {
	for _, pid := range h.pids {
		switch o.Type {
		case ownerTID:
			if tids, err := threads(pid); err == nil {
				for _, tid := range tids {
					if tid == int(o.PID) {
						return true
					}
				}
			}
		case ownerPGRP:
			if st, err := readStat(pid); err == nil && st.PGID == int(o.PID) {
				return true
			}
		default:
			if pid == int(o.PID) {
				return true
			}
		}
	}
	return false
}

// The types of owners, F_OWNER_TID and F_OWNER_PGRP of fcntl(2).
const (
	ownerTID  = 0
	ownerPGRP = 2
)

// table is the process under which the descriptor table of a process was read.
func (h *holders) table(pid int) int {
	if first := h.tables.first[pid]; first != 0 {
		return first
	}
	return pid
}

// taker is who takes a lock again: by, which took it, if it has the file open still; a lock
// of a process (holder is not 0) only in that table. by may have ended, as flock(1) does that starts a program.
func (h *holders) taker(f *kind.Found, by, holder int32) int32 {
	if holder != 0 {
		if h.table(int(by)) == int(holder) {
			return by
		}
		return holder
	}
	for _, at := range f.Slots {
		if h.table(int(by)) == int(at.PID) {
			return by
		}
	}
	return f.Slots[0].PID
}
