package sysv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// Perm is what all objects of System V IPC have (struct ipc64_perm).
type Perm struct {
	ID         int32
	Key        int32  // IPC_PRIVATE is 0
	Mode       uint32 // the permissions; of shared memory ShmDest and ShmLocked too
	UID, GID   uint32
	CUID, CGID uint32 // of the creator
}

// Bits of Perm.Mode of shared memory, from linux/shm.h.
const (
	ShmDest   = 0o1000 // it goes when nobody has it attached any more
	ShmLocked = 0o2000 // SHM_LOCK
)

// Shm is a segment of shared memory. Process ids are those of our pid namespace, or 0.
type Shm struct {
	Perm
	Size   uint64 // bytes, as shmget(2) was told
	CPID   int    // who made it
	LPID   int    // who attached or detached it last
	Attach uint64 // how many mappings there are of it
	CTime  int64  // when it was made or IPC_SET, in seconds
}

// Sem is a semaphore set.
type Sem struct {
	Perm
	N            int
	OTime, CTime int64 // seconds
}

// Msg is a message queue.
type Msg struct {
	Perm
	Bytes, Count uint64
	LSPID, LRPID int // who sent and who received last
	STime, RTime int64
	CTime        int64
}

// At is when a queue was used or changed last, in seconds.
func (m *Msg) At() int64 { return max(m.STime, m.RTime, m.CTime) }

// ReadShm reads /proc/sysvipc/shm. A kernel without System V IPC has none.
func ReadShm() ([]Shm, error) { return read("shm", ParseShm) }

// ReadSem reads /proc/sysvipc/sem.
func ReadSem() ([]Sem, error) { return read("sem", ParseSem) }

// ReadMsg reads /proc/sysvipc/msg.
func ReadMsg() ([]Msg, error) { return read("msg", ParseMsg) }

func read[T any](name string, parse func([]byte) ([]T, error)) ([]T, error) {
	b, err := os.ReadFile("/proc/sysvipc/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("/proc/sysvipc/%s: %w", name, err)
	}
	return all, nil
}

// ParseShm parses the text of /proc/sysvipc/shm: a line of titles, then a line for each segment.
func ParseShm(b []byte) ([]Shm, error) {
	return parse(b, func(l *line) Shm {
		s := Shm{Perm: l.perm()}
		s.Size, s.CPID, s.LPID, s.Attach = l.number(), int(l.signed(32)), int(l.signed(32)), l.number()
		l.owners(&s.Perm)
		l.signed(64)
		l.signed(64)
		s.CTime = l.signed(64)
		return s
	})
}

// ParseSem parses the text of /proc/sysvipc/sem.
func ParseSem(b []byte) ([]Sem, error) {
	return parse(b, func(l *line) Sem {
		s := Sem{Perm: l.perm(), N: int(l.signed(32))}
		l.owners(&s.Perm)
		s.OTime, s.CTime = l.signed(64), l.signed(64)
		if s.N < 0 {
			l.bad = true
		}
		return s
	})
}

// ParseMsg parses the text of /proc/sysvipc/msg.
func ParseMsg(b []byte) ([]Msg, error) {
	return parse(b, func(l *line) Msg {
		m := Msg{Perm: l.perm(), Bytes: l.number(), Count: l.number(), LSPID: int(l.signed(32)), LRPID: int(l.signed(32))}
		l.owners(&m.Perm)
		m.STime, m.RTime, m.CTime = l.signed(64), l.signed(64), l.signed(64)
		return m
	})
}

// parse parses every line but the first. Columns may be added by newer kernels.
func parse[T any](b []byte, f func(*line) T) ([]T, error) {
	var all []T
	_, b, _ = bytes.Cut(b, []byte("\n"))
	for text := range bytes.Lines(b) {
		l := line{fields: bytes.Fields(text)}
		v := f(&l)
		if l.bad {
			return nil, fmt.Errorf("a line that is not understood: %q", bytes.TrimSpace(text))
		}
		all = append(all, v)
	}
	return all, nil
}

// line takes the columns of a line one by one.
type line struct {
	fields [][]byte
	bad    bool
}

func (l *line) next() string {
	if len(l.fields) == 0 {
		l.bad = true
		return ""
	}
	f := string(l.fields[0])
	l.fields = l.fields[1:]
	return f
}

func (l *line) signed(bits int) int64 {
	v, err := strconv.ParseInt(l.next(), 10, bits)
	l.bad = l.bad || err != nil
	return v
}

func (l *line) number() uint64 {
	v, err := strconv.ParseUint(l.next(), 10, 64)
	l.bad = l.bad || err != nil
	return v
}

func (l *line) id() uint32 { // the kernel prints (uid_t)-1 as what it is
	v, err := strconv.ParseUint(l.next(), 10, 32)
	l.bad = l.bad || err != nil
	return uint32(v)
}

// perm takes key, id and mode.
func (l *line) perm() Perm {
	p := Perm{Key: int32(l.signed(64)), ID: int32(l.signed(32))}
	mode, err := strconv.ParseUint(l.next(), 8, 32)
	l.bad = l.bad || err != nil || p.ID < 0
	p.Mode = uint32(mode)
	return p
}

func (l *line) owners(p *Perm) { p.UID, p.GID, p.CUID, p.CGID = l.id(), l.id(), l.id(), l.id() }
