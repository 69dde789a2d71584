package kind

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What waits in a stream socket is bytes, but there are borders that a read does not pass: behind
// those that files came with, between different senders (with SO_PASSCRED), and before an
// out-of-band byte or where one was that has been read.

const siocAtMark = 0x8905 // SIOCATMARK

// stretch reads what waits in a stream; pri tells that there is an out-of-band byte.
func (p *peeker) stretch(pri bool) (data []byte, all []unixMsg, err error) {
	at, err := unix.IoctlGetInt(p.fd, siocAtMark)
	if err != nil && err != unix.EOPNOTSUPP && err != unix.ENOTTY {
		return nil, nil, fmt.Errorf("SIOCATMARK: %w", err)
	}
	here := err == nil && at != 0
	if here && p.queued == 0 {
		return nil, []unixMsg{{Mark: readOOB}}, nil
	}
	var before *unixMsg         // all that was read in one look
	marked, hidden := -1, false // the last run with a mark, and whether there may be one behind that
	for len(data) < p.queued {
		m, got, err := p.look(len(data), p.buf, true)
		if err == nil && len(got) == 0 {
			err = unix.ENODATA
		}
		if err != nil {
			return data, all, fmt.Errorf("look at what waits in it, at byte %d of %d: %w", len(data), p.queued, err)
		}
		data = append(data, got...) // the next look overwrites it
		if before != nil {
			if here, err = p.markBetween(before, &m, len(data)-len(got)); err != nil {
				closeOwn(m.fds)
				return data, all, err
			}
			hidden = hidden || len(before.fds) > 0
		}
		if here {
			m.Mark, marked, hidden = readOOB, len(all), false
		}
		before = &m
		runs, err := p.part(m, len(data)-len(got))
		all = append(all, runs...)
		if err == nil {
			err = queueTooLong(data, all)
		}
		if err != nil {
			return data, all, err
		}
	}
	if !pri {
		return data, all, nil
	}
	if marked < 0 || hidden {
		return data, all, errors.New("an out-of-band byte waits in it among files, and its place cannot be told")
	}
	all[marked].Mark = liveOOB
	return data, all, nil
}

// markBetween reports whether there is a mark between two runs that came one after the other, the
// second at an offset. Behind files nobody can tell.
func (p *peeker) markBetween(before, m *unixMsg, off int) (bool, error) {
	if len(before.fds) > 0 {
		return false, nil
	}
	if before.Cred.equal(m.Cred) {
		return true, nil
	}
	own, _, err := p.look(off-int(before.Len), p.buf, false)
	closeOwn(own.fds)
	if err != nil {
		return false, fmt.Errorf("look at the border at byte %d: %w", off, err)
	}
	return own.Len == before.Len, nil
}

// part parts a run that files came with from the bytes before it, which came with none: only who
// reads beyond those gets the files.
func (p *peeker) part(m unixMsg, off int) ([]unixMsg, error) {
	if len(m.fds) == 0 || m.Len == 1 {
		return []unixMsg{m}, nil
	}
	n, err := p.before(off, int(m.Len)-1)
	if n == 0 || err != nil {
		return []unixMsg{m}, err
	}
	with := unixMsg{Len: m.Len - int32(n), Cred: m.Cred, fds: m.fds}
	return []unixMsg{{Len: int32(n), Cred: m.Cred, Mark: m.Mark}, with}, nil
}

// before returns how many bytes come, at an offset, from what was sent before that to which byte k
// belongs. What was sent at once is copied as a whole or, if memory is missing for its last
// bytes, not at all.
func (p *peeker) before(off, k int) (int, error) {
	page := os.Getpagesize()
	size := (k + page - 1) / page * page
	mem, err := unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, fmt.Errorf("mmap: %w", err)
	}
	defer func() { _ = unix.Munmap(mem) }() // it is a mapping of our own
	if err := unix.Mprotect(mem[size:], unix.PROT_NONE); err != nil {
		return 0, fmt.Errorf("mprotect: %w", err)
	}
	m, _, err := p.look(off, mem[size-k:size], true)
	closeOwn(m.fds)
	if err == unix.EFAULT {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for the border at byte %d: %w", off, err)
	}
	return int(m.Len), nil
}
