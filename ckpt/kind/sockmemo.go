package kind

import (
	"bytes"
	"errors"

	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"golang.org/x/sys/unix"
)

// Sixty system calls ask a socket for its options, and in a freeze that is too much for a thousand of them. So the look
// asks before, and notes what the kernel's memory held of the socket then. If that is still the same
// in the freeze, so is all that depends on it.

// fewestSockets is for how many sockets it is worth the preparations, in a look of some ms.
const fewestSockets = 24

// SockMemo is what a look has learned of sockets.
type SockMemo struct {
	mem *kmem.Memory
	tcp bool                     // it tells of TCP connections what repair mode does, see peekQuiet
	by  map[[2]uint64]*sockState // by device and inode
}

// sockState is what depends on the memory of a socket.
type sockState struct {
	in     string // which structure that is
	memory []byte
	inet   *inetKind
	family int
	opts   []sockOpt // of a network socket
	barred []string  // those that cannot be set again
	unix   []unixOpt // of a unix socket
	cred   *peerOf
	under  uint32 // files that are under way in it
	listen bool   // in which case that is not all
	name   []byte
	peer   []byte
	noPeer error
	ready  int16     // of poll(2): sockPoll, if it is a unix or TCP socket
	tcp    *quietTCP // of TCP
	memo   *SockMemo
}

// structure is the kernel's structure of a socket, "" if it is not of those that are noted.
func (f *Found) structure() string {
	if f.domain() == unix.AF_UNIX {
		return "unix_sock"
	}
	if !(inetSock{}).Match(f) {
		return ""
	}
	v6 := ""
	if f.ofInet().family == unix.AF_INET6 {
		v6 = "6"
	}
	switch k := f.ofInet(); {
	case k.typ == unix.SOCK_STREAM && k.protocol == unix.IPPROTO_TCP:
		return "tcp" + v6 + "_sock"
	case k.typ == unix.SOCK_DGRAM && k.protocol == unix.IPPROTO_UDP:
		return "udp" + v6 + "_sock"
	case k.typ == unix.SOCK_RAW:
		return "raw" + v6 + "_sock"
	}
	return ""
}

// RememberSockets asks the sockets of a tree that runs. It returns nil if they are few, or the kernel's memory cannot be
// read.
func RememberSockets(s *Scene) *SockMemo {
	var all []*Found
	for _, f := range s.Files {
		if f.Stat.Mode&unix.S_IFMT == unix.S_IFSOCK && f.Flags&unix.O_PATH == 0 {
			all = append(all, f)
		}
	}
	if len(all) < fewestSockets {
		return nil
	}
	mem, err := kmem.Open()
	if err != nil {
		return nil
	}
	m := &SockMemo{mem: mem, by: map[[2]uint64]*sockState{}}
	states := make([]*sockState, len(all))
	kept := all[:0]
	for _, f := range all {
		if in := f.structure(); in != "" {
			if in != "unix_sock" {
				if _, err := s.freshOf(f.ofInet()); err != nil {
					continue
				}
			}
			states[len(kept)] = &sockState{in: in, family: f.domain(), memo: m}
			kept = append(kept, f)
		}
	}
	states = states[:len(kept)]
	before, err := m.memory(kept, states)
	if err != nil {
		return nil
	}
	asked := make([]error, len(kept))
	_ = onAllCPUs(len(kept), func(i int) error { // what fails for one is asked again in the freeze
		asked[i] = states[i].read(kept[i], s)
		return nil
	})
	after, err := m.memory(kept, states)
	if err != nil {
		return nil
	}
	quiet := false
	for i, f := range kept {
		if asked[i] == nil && before[i] != nil && bytes.Equal(before[i], after[i]) {
			states[i].memory = after[i]
			m.by[[2]uint64{f.Stat.Dev, f.Stat.Ino}] = states[i]
			quiet = quiet || states[i].tcp != nil && states[i].tcp.quiet
		}
	}
	m.tcp = quiet && proveTCP(mem) == nil // else all are asked in repair mode
	return m
}

// memory is what the kernel's memory holds of sockets.
func (m *SockMemo) memory(all []*Found, states []*sockState) ([][]byte, error) {
	ask := make([]kmem.Socket, len(all))
	for i, f := range all {
		ask[i] = kmem.Socket{FD: f.FD, Struct: states[i].in}
	}
	return m.mem.Sockets(ask)
}

// read asks a socket for all.
func (st *sockState) read(f *Found, s *Scene) (err error) {
	if _, err := socketFilter(f.FD); err != nil {
		return err // which is to be told in the freeze
	}
	if st.in == "unix_sock" {
		if st.unix, err = allUnixOpts(f.FD); err != nil {
			return err
		}
		if _, cerr := f.peerCred(); cerr != nil {
			return cerr
		}
		st.cred, st.under = f.cred, f.Info.SCMFDs
		if st.ready, err = polled(f.FD, sockPoll); err != nil {
			return err
		}
		listens, lerr := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		st.listen = listens != 0 || lerr != nil
		st.name, err = socketAddr(f.FD, unix.SYS_GETSOCKNAME)
		return err
	}
	k := f.ofInet()
	st.inet = k
	fresh := s.fresh[[3]int{k.family, k.typ, k.protocol}]
	if st.opts, err = dumpOpts(f.FD, k.typ, fresh); err != nil {
		return err
	}
	st.barred = barredOpts(f.FD, fresh)
	if k.typ == unix.SOCK_STREAM {
		if st.tcp, st.ready, err = lookTCP(f.FD); err != nil {
			return err
		}
	}
	if st.name, err = sockName(f.FD, unix.SYS_GETSOCKNAME); err != nil {
		return err
	}
	st.peer, st.noPeer = sockName(f.FD, unix.SYS_GETPEERNAME)
	if errors.Is(st.noPeer, unix.ENOTCONN) {
		return nil
	}
	return st.noPeer
}

// Recall looks which sockets are as they were noted. m may be nil. What is returned is for a line of the log.
func (m *SockMemo) Recall(found []*Found) (same, all int) {
	if m == nil {
		return 0, 0
	}
	var files []*Found
	var ask []kmem.Socket
	for _, f := range found {
		if f.Stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
			continue
		}
		if st := m.by[[2]uint64{f.Stat.Dev, f.Stat.Ino}]; st != nil {
			files, ask = append(files, f), append(ask, kmem.Socket{FD: f.FD, Struct: st.in})
		}
	}
	if len(files) == 0 {
		return 0, 0
	}
	_ = m.mem.EachSocket(ask, func(i int, memory []byte) { // those that it does not come to are asked again
		f := files[i]
		st := m.by[[2]uint64{f.Stat.Dev, f.Stat.Ino}]
		if memory == nil || !bytes.Equal(st.memory, memory) {
			return
		}
		f.known, f.inet, f.cred = st, st.inet, st.cred
		f.family = &st.family
		same++
	})
	return same, len(files)
}

// FilesUnderWay is how many files are under way in the queue of a socket; ok is false if that has to be read.
func (f *Found) FilesUnderWay() (n uint32, ok bool) {
	switch {
	case f.domain() != unix.AF_UNIX:
		return 0, f.domain() >= 0
	case f.known == nil || f.known.listen:
		return 0, false
	}
	return f.known.under, true
}

// sockAddr is getsockname(2) or getpeername(2) of a network socket.
func (f *Found) sockAddr(nr uintptr) ([]byte, error) {
	switch {
	case f.known == nil:
		return sockName(f.FD, nr)
	case nr == unix.SYS_GETPEERNAME:
		return f.known.peer, f.known.noPeer
	}
	return f.known.name, nil
}

// sockPoll is what is asked of sockets.
const sockPoll = unix.POLLIN | unix.POLLPRI | unix.POLLRDHUP

// polled is poll(2) of a socket, for some of sockPoll and what is always told.
func (f *Found) polled(events int16) (int16, error) {
	if f.known != nil && (f.known.tcp != nil || f.known.unix != nil) {
		return f.known.ready & (events | unix.POLLERR | unix.POLLHUP), nil
	}
	return polled(f.FD, events)
}

// unixName is sun_path of getsockname(2).
func (f *Found) unixName() ([]byte, error) {
	if f.known != nil {
		return f.known.name, nil
	}
	return socketAddr(f.FD, unix.SYS_GETSOCKNAME)
}

// filter is socketFilter of a socket. One that is known has none.
func (f *Found) filter() ([]byte, error) {
	if f.known != nil {
		return nil, nil
	}
	return socketFilter(f.FD)
}
