package kind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// unixOpt is an option of SOL_SOCKET that is not what a new socket has.
type unixOpt struct {
	Opt   int32  `cbor:"1,keyasint"`
	Value []byte `cbor:"3,keyasint"` // 2 was a number
}

const (
	soRcvMark    = 75 // SO_RCVMARK
	soReserveMem = 73 // SO_RESERVE_MEM
	soBufLock    = 72 // SO_BUF_LOCK
)

// unixOpts are the options that a unix socket can have, and the sizes of their values. The others of
// socket(7) are of networks, or tell what is found out otherwise.
var unixOpts = map[int32]int{
	unix.SO_DEBUG: 4, unix.SO_REUSEADDR: 4, unix.SO_DONTROUTE: 4, unix.SO_BROADCAST: 4, unix.SO_KEEPALIVE: 4, unix.SO_OOBINLINE: 4,
	unix.SO_NO_CHECK: 4, unix.SO_PRIORITY: 4, unix.SO_LINGER: 8, unix.SO_PASSCRED: 4, unix.SO_RCVLOWAT: 4,
	unix.SO_RCVTIMEO: 16, unix.SO_SNDTIMEO: 16, unix.SO_TIMESTAMP: 4, unix.SO_TIMESTAMPNS: 4, unix.SO_TIMESTAMP_NEW: 4, unix.SO_TIMESTAMPNS_NEW: 4,
	unix.SO_PASSSEC: 4, unix.SO_MARK: 4, unix.SO_TIMESTAMPING: 8, unix.SO_TIMESTAMPING_NEW: 8, unix.SO_RXQ_OVFL: 4, unix.SO_WIFI_STATUS: 4,
	unix.SO_PEEK_OFF: 4, unix.SO_NOFCS: 4, unix.SO_LOCK_FILTER: 4, unix.SO_SELECT_ERR_QUEUE: 4, unix.SO_BUSY_POLL: 4, unix.SO_MAX_PACING_RATE: 8,
	unix.SO_INCOMING_CPU: 4, unix.SO_PREFER_BUSY_POLL: 4, soReserveMem: 4, soRcvMark: 4, soRcvPriority: 4,
	unix.SO_PASSPIDFD: 4, unix.SO_PASSRIGHTS: 4, unix.SO_SNDBUF: 4, unix.SO_RCVBUF: 4, soBufLock: 4,
}

// lastOpts are set after all others, in this order: a size sets a lock, and what locks the filter
// comes when that is there, see attachFilter.
var lastOpts = []int32{unix.SO_SNDBUF, unix.SO_RCVBUF, soBufLock, unix.SO_LOCK_FILTER}

// getUnixOpt reads an option; nil: there is none on this kernel or for such a socket.
func getUnixOpt(fd int, opt int32, size int) ([]byte, error) {
	b, errno := rawGetOpt(fd, unix.SOL_SOCKET, int(opt), size)
	switch {
	case errno == unix.ENOPROTOOPT || errno == unix.EOPNOTSUPP:
		return nil, nil
	case errno != 0:
		return nil, fmt.Errorf("read its option %d: %w", opt, errno)
	}
	return b, nil
}

func setUnixOpt(fd int, opt int32, value []byte) error {
	return rawSetOpt(fd, unix.SOL_SOCKET, int(opt), value)
}

// optOrder is the order in which options are set.
var optOrder = append(slices.DeleteFunc(slices.Sorted(maps.Keys(unixOpts)), func(o int32) bool { return slices.Contains(lastOpts, o) }), lastOpts...)

// allUnixOpts reads every option.
func allUnixOpts(fd int) ([]unixOpt, error) {
	all := make([]unixOpt, 0, len(optOrder))
	for _, opt := range optOrder {
		value, err := getUnixOpt(fd, opt, unixOpts[opt])
		if err != nil {
			return nil, err
		}
		all = append(all, unixOpt{opt, value})
	}
	return all, nil
}

// unixOptions reads the options that are not those of a new socket, and the sizes in any case.
func (s *Scene) unixOptions(f *Found, typ int) ([]unixOpt, error) {
	if s.freshes[typ] == nil {
		fresh, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("socket to compare with: %w", err)
		}
		usual, err := allUnixOpts(fresh)
		unix.Close(fresh)
		if err != nil {
			return nil, err
		}
		if s.freshes == nil {
			s.freshes = map[int][]unixOpt{}
		}
		s.freshes[typ] = usual
	}
	if s.unixOpts == nil && f.known == nil {
		if err := s.readUnixOpts(); err != nil {
			return nil, err
		}
	}
	all := s.unixOpts[f]
	if f.known != nil {
		all = f.known.unix
	}
	if all == nil { // one that was found since, under way in a message
		var err error
		if all, err = allUnixOpts(f.FD); err != nil {
			return nil, err
		}
	}
	var out []unixOpt
	for i, o := range all {
		if len(o.Value) == unixOpts[o.Opt] && (!bytes.Equal(o.Value, s.freshes[typ][i].Value) || slices.Contains(lastOpts[:3], o.Opt)) {
			out = append(out, o)
		}
	}
	return out, nil
}

// readUnixOpts reads the options of all unix sockets at once, on all CPUs: there is a system call for each.
func (s *Scene) readUnixOpts() error {
	var all []*Found
	for _, f := range s.Files {
		if f.known == nil && (unixSock{}).Match(f) {
			all = append(all, f)
		}
	}
	read := make([][]unixOpt, len(all))
	err := onAllCPUs(len(all), func(i int) (err error) {
		read[i], err = allUnixOpts(all[i].FD)
		return err
	})
	if err != nil {
		return err
	}
	s.unixOpts = make(map[*Found][]unixOpt, len(all))
	for i, f := range all {
		s.unixOpts[f] = read[i]
	}
	return nil
}

// set sets an option if it is another one now.
func (o *unixOpt) set(fd int, e *Env) error {
	have, err := getUnixOpt(fd, o.Opt, len(o.Value))
	if err != nil || bytes.Equal(have, o.Value) {
		return err
	}
	if o.Opt == unix.SO_LOCK_FILTER {
		return nil // when the filter is there
	}
	value, force := o.Value, int32(0)
	ne := binary.NativeEndian
	switch o.Opt { // these are told twice as large as they are set
	case unix.SO_SNDBUF:
		value, force = ne.AppendUint32(nil, ne.Uint32(value)/2), unix.SO_SNDBUFFORCE
	case unix.SO_RCVBUF:
		value, force = ne.AppendUint32(nil, ne.Uint32(value)/2), unix.SO_RCVBUFFORCE
	}
	err = setUnixOpt(fd, o.Opt, value)
	if err == nil && force != 0 {
		if have, err = getUnixOpt(fd, o.Opt, 4); err == nil && !bytes.Equal(have, o.Value) {
			err = setUnixOpt(fd, force, value)
		}
	}
	if errors.Is(err, unix.EPERM) && e.Help {
		err = e.In(int(e.Manifest.Tasks[0].PID), func(Process) error {
			if force != 0 {
				return setUnixOpt(fd, force, value)
			}
			return setUnixOpt(fd, o.Opt, value)
		})
	}
	if err != nil {
		return fmt.Errorf("set its option %d to %x: %w", o.Opt, o.Value, err)
	}
	return nil
}
