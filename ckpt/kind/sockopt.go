package kind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of sockets. Those that differ from what a new socket of the same family, type and protocol
// has are recorded, and set in the order of this table. SO_ERROR is never read: that would clear it.

// sockOpt is one option in a record, with the bytes of getsockopt(2).
type sockOpt struct {
	Level int32  `cbor:"1,keyasint"`
	Name  int32  `cbor:"2,keyasint"`
	Value []byte `cbor:"3,keyasint"`
}

// When an option is set.
const (
	optEarly  = iota // before bind(2)
	optLate          // when the socket is bound, listens or is connected
	optLast          // when nothing else is to be done: it forbids or changes what would be
	optRefuse        // cannot be set again: a value other than that of a new socket is refused
)

// optSpec is what is known of an option.
type optSpec struct {
	level, name int
	text        string
	size        int // bytes of its value, which getsockopt(2) may shorten if it is a name; 0: an int
	when        int
	set         func(fd int, value []byte) error // nil: setsockopt(2) of the same bytes
}

// spec finds an option in the table, or nil.
func (o *sockOpt) spec() *optSpec {
	for i := range optSpecs {
		if s := &optSpecs[i]; s.level == int(o.Level) && s.name == int(o.Name) {
			return s
		}
	}
	return nil
}

// bytes is the size of the value of an option.
func (s *optSpec) bytes() int {
	if s.size == 0 {
		return 4
	}
	return s.size
}

// rawGetOpt is getsockopt(2) of a value of at most size bytes.
func rawGetOpt(fd, level, name, size int) ([]byte, unix.Errno) {
	b := make([]byte, size)
	n := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	return b[:min(int(n), size)], errno
}

// rawSetOpt is setsockopt(2).
func rawSetOpt(fd, level, name int, value []byte) error {
	at := unsafe.Pointer(nil)
	if len(value) > 0 {
		at = unsafe.Pointer(&value[0])
	}
	if _, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(at), uintptr(len(value)), 0); errno != 0 {
		return errno
	}
	return nil
}

// getOpt reads an option; ok is false if sockets of this kind do not have it.
func getOpt(fd int, s *optSpec) (value []byte, ok bool, err error) {
	b, errno := rawGetOpt(fd, s.level, s.name, s.bytes())
	switch errno {
	case 0:
		return b, true, nil
	case unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOTCONN, unix.ENOENT:
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("getsockopt %s: %w", s.text, errno)
}

// setOpt sets an option.
func setOpt(fd int, s *optSpec, value []byte) error {
	if s.set != nil {
		return s.set(fd, value)
	}
	return rawSetOpt(fd, s.level, s.name, value)
}

// setBuffer sets the size of a buffer, which getsockopt(2) tells as twice what was asked for. The
// kernel makes the buffers of TCP larger by itself, to an odd size too.
func setBuffer(name, force int) func(fd int, value []byte) error {
	return func(fd int, value []byte) error {
		n := int(int32(binary.NativeEndian.Uint32(value)))
		ask := n/2 + n%2
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, name, ask); err != nil {
			return err
		}
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name); err != nil || got >= n {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, ask)
	}
}

// alike reports whether an option has come out as it was.
func (s *optSpec) alike(got, want []byte) bool {
	if s.level == unix.SOL_SOCKET && s.name == unix.SO_RCVLOWAT && len(got) == 4 && len(want) == 4 {
		// 0, which a socket can have that came from accept(2) of MPTCP, cannot be set and means 1
		return max(binary.NativeEndian.Uint32(got), 1) == max(binary.NativeEndian.Uint32(want), 1)
	}
	if s.level == unix.SOL_SOCKET && (s.name == unix.SO_SNDBUF || s.name == unix.SO_RCVBUF) {
		a, b := binary.NativeEndian.Uint32(got), binary.NativeEndian.Uint32(want)
		return a == b || a == b+1
	}
	return bytes.Equal(got, want)
}

// sockDefaults are the options of new sockets, by what makes them.
type sockDefaults map[[3]int][][]byte

// of returns the options of a new socket, in the order of optSpecs; nil: it does not have the option.
func (d sockDefaults) of(family, typ, protocol int) ([][]byte, error) {
	key := [3]int{family, typ, protocol}
	if all, ok := d[key]; ok {
		return all, nil
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("make a socket to compare with: %w", err)
	}
	defer unix.Close(fd)
	all := make([][]byte, len(optSpecs))
	for i := range optSpecs {
		v, ok, err := getOpt(fd, &optSpecs[i])
		if err != nil {
			return nil, err
		}
		if ok {
			all[i] = append([]byte{}, v...)
		}
	}
	d[key] = all
	return all, nil
}

// dumpOpts returns the options of a socket that differ from those of a new one. Those that cannot be
// set again have been refused before.
func dumpOpts(fd, typ int, fresh [][]byte) (opts []sockOpt, err error) {
	for i := range optSpecs {
		s := &optSpecs[i]
		if fresh[i] == nil || s.when == optRefuse || typ == unix.SOCK_STREAM && s.multicast() {
			continue
		}
		v, ok, err := getOpt(fd, s)
		if err != nil {
			return nil, err
		}
		if ok && !bytes.Equal(v, fresh[i]) {
			opts = append(opts, sockOpt{int32(s.level), int32(s.name), v})
		}
	}
	return opts, nil
}

// barredOpts names the options of a socket that cannot be set again.
func barredOpts(fd int, fresh [][]byte) (all []string) {
	for i := range optSpecs {
		if o := &optSpecs[i]; o.when == optRefuse && fresh[i] != nil && set(fd, o) {
			all = append(all, o.text)
		}
	}
	return all
}

// set reports whether an option that cannot be set again has another value than 0.
func set(fd int, o *optSpec) bool {
	v, ok, err := getOpt(fd, o)
	if err != nil || !ok {
		return false
	}
	if o.text == "TCP_ULP" && bytes.HasPrefix(v, []byte("mptcp")) { // every socket of MPTCP has that
		return false
	}
	return slices.ContainsFunc(v, func(b byte) bool { return b != 0 })
}

// freshOf returns the options of a new socket.
func (s *Scene) freshOf(k *inetKind) ([][]byte, error) {
	if s.fresh == nil {
		s.fresh = sockDefaults{}
	}
	return s.fresh.of(k.family, k.typ, k.protocol)
}

// options returns the options of a network socket. Those of all are read at once, on all CPUs: the
// tree stands still meanwhile, and there is a system call for each.
func (s *Scene) options(f *Found) ([]sockOpt, error) {
	if f.known != nil {
		return f.known.opts, nil
	}
	if s.inetOpts == nil {
		var all []*Found
		for _, g := range s.Files {
			if g.known == nil && (inetSock{}).Match(g) {
				if _, err := s.freshOf(g.ofInet()); err != nil {
					return nil, err
				}
				all = append(all, g)
			}
		}
		read := make([][]sockOpt, len(all))
		err := onAllCPUs(len(all), func(i int) (err error) {
			k := all[i].ofInet()
			read[i], err = dumpOpts(all[i].FD, k.typ, s.fresh[[3]int{k.family, k.typ, k.protocol}])
			return err
		})
		if err != nil {
			return nil, err
		}
		s.inetOpts = map[*Found][]sockOpt{}
		for i, g := range all {
			s.inetOpts[g] = read[i]
		}
	}
	if opts, ok := s.inetOpts[f]; ok {
		return opts, nil
	}
	fresh, err := s.freshOf(f.ofInet()) // one that was found since, under way in a message
	if err != nil {
		return nil, err
	}
	return dumpOpts(f.FD, f.ofInet().typ, fresh)
}

// onAllCPUs calls f for 0 to n-1, some of it at once, until one fails.
func onAllCPUs(n int, f func(i int) error) error {
	errs := make([]error, runtime.NumCPU())
	var group sync.WaitGroup
	var next atomic.Int64
	for w := range errs {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && errs[w] == nil; i = next.Add(1) - 1 {
				errs[w] = f(int(i))
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// multicast reports whether an option is about sending to groups. One that came from accept(2) has
// in its place something of the first packet, and nobody can set it.
func (s *optSpec) multicast() bool {
	return strings.Contains(s.text, "_MULTICAST_")
}

// checkOpts says what is wrong with options from an image.
func checkOpts(opts []sockOpt) error {
	if len(opts) > len(optSpecs) {
		return fmt.Errorf("it has %d options, more than there are", len(opts))
	}
	for i := range opts {
		o := &opts[i]
		s := o.spec()
		switch {
		case s == nil || s.when == optRefuse:
			return fmt.Errorf("it has the option %d of level %d, which this version cannot set", o.Name, o.Level)
		case len(o.Value) > s.bytes() || len(o.Value) != s.bytes() && s.size < 16:
			return fmt.Errorf("its option %s has %d bytes", s.text, len(o.Value))
		}
	}
	return nil
}

// setOpts sets the options that are due, if they differ from what the socket has.
func setOpts(fd int, opts []sockOpt, when int) error {
	var errs []error
	grown := false // a buffer was set, which forbids the kernel to change its size
	for i := range opts {
		o := &opts[i]
		s := o.spec()
		if s == nil || s.when != when {
			continue
		}
		grown = grown || s.level == unix.SOL_SOCKET && (s.name == unix.SO_SNDBUF || s.name == unix.SO_RCVBUF)
		if now, ok, err := getOpt(fd, s); err == nil && ok && bytes.Equal(now, o.Value) {
			continue
		}
		if err := setOpt(fd, s, o.Value); err != nil {
			errs = append(errs, fmt.Errorf("setsockopt %s to %x: %w", s.text, o.Value, err))
		}
	}
	if grown { // if it was forbidden, that is among the late options
		errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0))
	}
	return errors.Join(errs...)
}

// verifyOpts compares the options of a socket with those of a record. The kernel makes the buffers of a
// connection larger whenever it likes.
func verifyOpts(fd int, opts []sockOpt, connected bool) error {
	for i := range opts {
		o := &opts[i]
		s := o.spec()
		if s == nil || connected && s.level == unix.SOL_SOCKET && (s.name == unix.SO_SNDBUF || s.name == unix.SO_RCVBUF) {
			continue
		}
		now, ok, err := getOpt(fd, s)
		if err != nil {
			return err
		}
		if !ok || !s.alike(now, o.Value) {
			return fmt.Errorf("its option %s came out as %x, not %x", s.text, now, o.Value)
		}
	}
	return nil
}
