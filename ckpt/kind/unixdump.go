package kind

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

func (unixSock) Dump(f *Found, s *Scene, rec *image.File) error {
	r, err := s.describeSocket(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	if r.Opts, err = s.unixOptions(f, int(r.Type)); err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	if r.Filter, err = f.filter(); err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	data, msgs, err := s.whatWaits(f, r)
	defer closeMsgs(msgs)
	if err == nil {
		err = s.unsendable(r, msgs)
	}
	if err == nil && r.By == nil {
		err = s.hidden(r, msgs)
	}
	if err != nil {
		return &image.RefusedError{Findings: []image.Finding{f.refuse(err.Error(), "try again when the program has read what waits in it")}}
	}
	if r.Msgs = msgs; len(data) > 0 {
		rec.Blob = s.Blob(data)
	}
	if r.addDead(f, s); len(r.Ended) > maxUnixDead {
		return fmt.Errorf("%s: what waits in it is from %d processes that have ended", f.Link, len(r.Ended))
	}
	return encodeRec(rec, r)
}

// whatWaits is what was sent to a socket, or, if it waits itself to be accepted, by it: the end that it was sent to is
// nobody's yet.
func (s *Scene) whatWaits(f *Found, r *unixRec) (data []byte, msgs []unixMsg, err error) {
	if r.Listening {
		return nil, nil, nil
	}
	if r.By != nil {
		return s.sentBy(f, s.waitsFor(f))
	}
	ready, err := f.polled(unix.POLLIN | unix.POLLPRI)
	if err != nil {
		return nil, nil, fmt.Errorf("poll: %w", err)
	}
	return s.peekQueue(f.FD, uint8(r.Type), ready)
}

// describeSocket makes the record, but for the options and what waits in it.
func (s *Scene) describeSocket(f *Found) (*unixRec, error) {
	u, err := s.socket(f)
	if err != nil {
		return nil, err
	}
	r := &unixRec{Type: int32(u.Type), Ino: f.Stat.Ino, Connected: u.HasPeer, Peer: uint64(u.Peer), Shutdown: u.Shutdown,
		Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid}
	if r.Name, r.File, err = s.nameOf(f); err != nil {
		return nil, err
	}
	if r.Cred, err = f.peerCred(); err != nil {
		return nil, err
	}
	r.Reconnect = s.reconnects(f, u)
	if r.cutOff(f, u, s); u.HasPeer && r.Peer == 0 {
		if r.PeerName, err = socketAddr(f.FD, unix.SYS_GETPEERNAME); err != nil {
			return nil, err
		}
	}
	if u.State == stateListen {
		r.Listening, r.Backlog = true, u.Backlog
		for _, ino := range u.Waiting {
			if s.socketByNumber(s.sockDev, ino) != nil {
				r.Waiting = append(r.Waiting, uint64(ino))
			}
		}
		return r, nil
	}
	if at := s.waitsFor(f); at != 0 && s.socketByNumber(s.sockDev, at) != nil {
		r.By, err = credOf(int(f.Place().PID))
		return r, err
	}
	if r.Type != unix.SOCK_DGRAM && u.HasPeer && len(r.Name) > 0 {
		r.Accepted = true // as far as anybody can tell, unless its other end is it
		if peer := s.peer(u); peer != nil {
			other, err := peer.unixName()
			if err != nil {
				return nil, err
			}
			r.Accepted = s.acceptedEnd(f, r.Name, peer, other) == f
		}
	}
	ready, err := f.polled(0)
	if err != nil {
		return nil, fmt.Errorf("poll: %w", err)
	}
	r.Reset = ready&unix.POLLERR != 0
	return r, nil
}

// cutOff notes that the other end is outside the tree and will be closed.
func (r *unixRec) cutOff(f *Found, u *unixInfo, s *Scene) {
	at := s.waitsFor(f)
	switch {
	case u.HasPeer && u.Peer != 0 && s.peer(u) == nil:
		r.Peer = 0
	case at == 0 || s.socketByNumber(s.sockDev, at) != nil:
		return
	}
	if r.Type != unix.SOCK_DGRAM {
		r.Shutdown = 3
	}
}

// unsendable tells why messages cannot be sent again, and fills in the files that go with them.
func (s *Scene) unsendable(r *unixRec, msgs []unixMsg) error {
	var from []byte
	pair := r.Type == unix.SOCK_DGRAM && r.Cred != nil && r.Peer != 0
	if pair {
		if peer := s.socketByNumber(s.sockDev, uint32(r.Peer)); peer != nil {
			var err error
			if from, err = peer.unixName(); err != nil {
				return err
			}
		}
	}
	for i := range msgs {
		m := &msgs[i]
		for _, fd := range m.fds {
			ref, err := s.refOf(fd)
			if err != nil {
				return err
			}
			m.Files = append(m.Files, ref)
		}
		if pair && string(m.From) != string(from) {
			return fmt.Errorf("a message waits in it from %s, which it is not connected to", showName(m.From))
		}
		if r.Reconnect && len(m.From) > 0 && !isPath(m.From) {
			return fmt.Errorf("a message waits in it from %s, which is outside the tree", showName(m.From))
		}
		if m.Cred != nil && !s.stays(int(m.Cred.PID)) {
			return fmt.Errorf("a message waits in it with the credentials of %s, which is not in the tree", processName(int(m.Cred.PID)))
		}
	}
	return nil
}

// hidden tells of empty messages that cannot be seen. A look by SO_PEEK_OFF, of ours or of the program,
// marks an empty message, and the next passes over it. So what the sender has used of its buffer is
// compared with what the messages need that were seen.
func (s *Scene) hidden(r *unixRec, msgs []unixMsg) error {
	peer := s.socketByNumber(s.sockDev, uint32(r.Peer))
	if r.Type == unix.SOCK_STREAM || r.Peer == 0 || peer == nil || len(msgs) == 0 {
		return nil
	}
	if u, err := s.socket(peer); err != nil || uint64(u.Peer) != r.Ino {
		return err
	}
	used, err := unix.IoctlGetInt(peer.FD, unix.TIOCOUTQ)
	if err != nil {
		return fmt.Errorf("SIOCOUTQ of its other end: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, int(r.Type)|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	defer closeOwn(pair[:])
	if unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, maxUnixQueue) != nil {
		return nil // some message may not fit, and nothing can be told
	}
	for i := range msgs {
		if _, err := unix.SendmsgN(pair[0], make([]byte, msgs[i].Len), nil, nil, unix.MSG_DONTWAIT); err != nil {
			return nil
		}
	}
	need, err := unix.IoctlGetInt(pair[0], unix.TIOCOUTQ)
	if err != nil {
		return fmt.Errorf("SIOCOUTQ: %w", err)
	}
	if _, err := unix.SendmsgN(pair[0], nil, nil, nil, unix.MSG_DONTWAIT); err != nil {
		return nil
	}
	more, err := unix.IoctlGetInt(pair[0], unix.TIOCOUTQ)
	if err != nil {
		return fmt.Errorf("SIOCOUTQ: %w", err)
	}
	if used >= more && used-need < 64*(more-need) && (used-need)%(more-need) == 0 {
		return fmt.Errorf("%d empty messages wait in it that a look before has hidden", (used-need)/(more-need))
	}
	return nil
}

// addDead notes the processes that had ended.
func (r *unixRec) addDead(f *Found, s *Scene) {
	dead := map[int32]bool{}
	add := func(c *unixCred) {
		if c == nil {
			return
		}
		if _, known := dead[c.PID]; !known {
			dead[c.PID] = !s.member(int(c.PID)) && !alive(int(c.PID))
		}
	}
	add(r.Cred)
	for i := range r.Msgs {
		add(r.Msgs[i].Cred)
	}
	for _, pid := range slices.Sorted(maps.Keys(dead)) {
		if !dead[pid] {
			continue
		}
		d := unixEnded{PID: pid}
		if r.Cred != nil && r.Cred.PID == pid {
			d.Status = peerStatus(f.FD)
		}
		r.Ended = append(r.Ended, d)
	}
}

// peerStatus is the wait status of the process of SO_PEERCRED, which SO_PEERPIDFD can tell also when it
// was reaped (since Linux 6.16); 0 if it is not known.
func peerStatus(fd int) uint32 {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return 0
	}
	defer unix.Close(pidfd)
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return 0
	}
	return uint32(info.exitCode)
}

// credOf is what SO_PEERCRED would tell of a process now.
func credOf(pid int) (*unixCred, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	st, err := procfs.ParseStatus(b)
	if err != nil {
		return nil, fmt.Errorf("/proc/%d/status: %w", pid, err)
	}
	return &unixCred{PID: int32(pid), UID: st.Uid[1], GID: st.Gid[1], Groups: st.Groups}, nil
}

// SameProgram reports whether a process runs the executable of this one.
func SameProgram(pid int) bool {
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	st, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && os.SameFile(own, st)
}

// alive reports whether a process runs, and has not ended.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	st, err := procfs.ParseStat(b)
	return err == nil && st.State != 'Z' && st.State != 'X'
}

// socketAddr returns sun_path of getsockname(2) or getpeername(2), as many bytes as it has.
func socketAddr(fd int, nr uintptr) ([]byte, error) {
	buf := make([]byte, 2*unix.SizeofSockaddrUnix)
	n := uint32(len(buf))
	_, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return nil, fmt.Errorf("read its name: %w", errno)
	}
	if n <= 2 || int(n) > len(buf) {
		return nil, nil
	}
	return buf[2:n], nil
}

// peerOf is what SO_PEERCRED and SO_PEERGROUPS have told.
type peerOf struct {
	cred *unixCred
	err  error
}

// peerCred is that of a socket that stands still, or as it was when it was asked for first.
func (f *Found) peerCred() (*unixCred, error) {
	if f.cred == nil {
		f.cred = &peerOf{}
		f.cred.cred, f.cred.err = peerCred(f.FD)
	}
	return f.cred.cred, f.cred.err
}

// peerCred is SO_PEERCRED and SO_PEERGROUPS, nil if there is none.
func peerCred(fd int) (*unixCred, error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	if c.Pid == 0 && c.Uid == ^uint32(0) {
		return nil, nil
	}
	groups, err := peerGroups(fd)
	return &unixCred{PID: c.Pid, UID: c.Uid, GID: c.Gid, Groups: groups}, err
}

// peerGroups is SO_PEERGROUPS.
func peerGroups(fd int) ([]uint32, error) {
	const most = 65536 // NGROUPS_MAX
	for n := 64; n <= most; n *= 4 {
		buf := make([]byte, 4*n)
		size := uint32(len(buf))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS, uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE:
			continue
		case errno == unix.ENODATA:
			return nil, nil
		case errno != 0:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		}
		groups := make([]uint32, size/4)
		for i := range groups {
			groups[i] = binary.NativeEndian.Uint32(buf[4*i:])
		}
		return groups, nil
	}
	return nil, fmt.Errorf("SO_PEERGROUPS: %w", unix.ERANGE)
}
