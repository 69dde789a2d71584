package kind

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// mqueue is a POSIX message queue (mq_overview(7)), which is a file with a name of its own namespace. It stays when its
// processes are gone, and is opened again by its name, as a regular file is; one that is gone, or had no name any more, is made
// anew. Its messages, and who waits for a signal of it, are read from the kernel's memory, see mqmessages.go
// and mqnotify.go.
type mqueue struct{}

type mqueueRec struct {
	Name     string `cbor:"1,keyasint"` // without the slash
	Unlinked bool   `cbor:"2,keyasint,omitempty"`
	Dev      uint64 `cbor:"3,keyasint"` // for telling which descriptions are of one queue
	Ino      uint64 `cbor:"4,keyasint"`
	Mode     uint32 `cbor:"5,keyasint"` // permissions
	UID      uint32 `cbor:"6,keyasint,omitempty"`
	GID      uint32 `cbor:"7,keyasint,omitempty"`
	MaxMsg   int64  `cbor:"8,keyasint"` // messages
	MsgSize  int64  `cbor:"9,keyasint"` // bytes of one
	// Messages are those that wait, in the order in which they are received; their bytes are the blob.
	// One record of a queue has them.
	Messages []mqMessage `cbor:"10,keyasint,omitempty"`
	Notify   *mqNotify   `cbor:"11,keyasint,omitempty"` // of a process that has this description
}

// Limits of linux/ipc_namespace.h, which no privilege lifts.
const (
	hardMaxMsg  = 65536
	hardMsgSize = 16 << 20
	mqueueSize  = 80 // st_size of every queue
)

// mqAttr is struct mq_attr of linux/mqueue.h.
type mqAttr struct {
	flags, maxMsg, msgSize, current int64
	_                               [4]int64
}

func (mqueue) Name() string { return "mqueue" }

func (mqueue) Match(f *Found) bool { return isMQueue(f) }

// isMQueue asks the filesystem only about what looks like a queue: others may be slow to answer.
func isMQueue(f *Found) bool {
	return f.Stat.Mode&unix.S_IFMT == unix.S_IFREG && f.Flags&unix.O_PATH == 0 && f.Stat.Size == mqueueSize &&
		unix.Major(f.Stat.Dev) == 0 && strings.HasPrefix(f.Link, "/") && fsType(f) == mqueueMagic
}

func (mqueue) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	a, err := mqGetAttr(f.FD)
	if err != nil {
		return append(all, f.refuse(fmt.Sprintf("the message queue does not tell its attributes: %v", err), "close the queue with mq_close before the checkpoint"))
	}
	if a.current > 0 {
		if _, _, err := mqMessages(f); err != nil {
			all = append(all, f.refuse(fmt.Sprintf("messages wait in the queue (%d), and what is in them cannot be read: %v", a.current, err),
				"try again when they have been received"))
		}
	}
	pid, err := mqNotified(f.FD)
	switch {
	case err != nil:
		all = append(all, f.refuse(fmt.Sprintf("whether somebody waits for a signal of the message queue cannot be read: %v", err), "run ckptfs as root"))
	case pid != 0 && s.member(pid):
		if _, err := readNotify(f, pid); err != nil {
			all = append(all, f.refuse(fmt.Sprintf("pid %d has registered with the queue (mq_notify): %v", pid, err),
				"let it take the registration back (mq_notify with NULL) before the checkpoint"))
		}
	}
	if f.Stat.Nlink == 0 {
		if pid := max(s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_RDONLY), s.Outside(f.Stat.Dev, f.Stat.Ino, unix.O_WRONLY)); pid != 0 {
			all = append(all, f.refuse(fmt.Sprintf("the queue has no name any more, and pid %d, which is outside the tree, has it open too", pid),
				fmt.Sprintf("checkpoint a tree that holds pid %d too", pid)))
		}
	}
	return all
}

func (mqueue) Dump(f *Found, s *Scene, rec *image.File) error {
	a, err := mqGetAttr(f.FD)
	if err != nil {
		return fmt.Errorf("%s: mq_getattr: %w", f.Link, err)
	}
	var msgs []mqMessage
	if first(f, s) == f {
		var data []byte
		if msgs, data, err = mqMessages(f); err != nil {
			return fmt.Errorf("%s: the messages that wait in the queue: %w", f.Link, err)
		}
		if len(data) > 0 {
			rec.Blob = s.Blob(data)
		}
	}
	notify, err := s.mqNotifyOf(f)
	if err != nil {
		return fmt.Errorf("%s: mq_notify: %w", f.Link, err)
	}
	link := f.Link
	if f.Stat.Nlink == 0 {
		link = strings.TrimSuffix(link, " (deleted)")
	}
	return encodeRec(rec, &mqueueRec{Name: path.Base(link), Unlinked: f.Stat.Nlink == 0, Dev: f.Stat.Dev, Ino: f.Stat.Ino,
		Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid, MaxMsg: a.maxMsg, MsgSize: a.msgSize, Messages: msgs, Notify: notify})
}

// record decodes what an image holds of a queue, and bounds it.
func (mqueue) record(rec *image.File) (*mqueueRec, error) {
	var r mqueueRec
	if err := decodeRec(rec, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Name == "" || r.Name == "." || r.Name == ".." || len(r.Name) > 255 || strings.ContainsAny(r.Name, "/\x00"):
		return nil, fmt.Errorf("message queue %q: that is no name of one", r.Name)
	case r.MaxMsg < 1 || r.MaxMsg > hardMaxMsg || r.MsgSize < 1 || r.MsgSize > hardMsgSize:
		return nil, fmt.Errorf("message queue %q: %d messages of %d bytes are more than a queue can have", r.Name, r.MaxMsg, r.MsgSize)
	case r.Mode&^0o7777 != 0:
		return nil, fmt.Errorf("message queue %q: the mode %#o", r.Name, r.Mode)
	}
	if err := r.Notify.check(); err != nil {
		return nil, fmt.Errorf("message queue %q: %w", r.Name, err)
	}
	return &r, r.checkMessages()
}

// CheckOpen compares a queue that is there with the image.
func (k mqueue) CheckOpen(rec *image.File, e *Env) (warn string, err error) {
	r, err := k.record(rec)
	if err != nil || r.Unlinked {
		return "", err
	}
	fd, err := mqOpen(r.Name, unix.O_RDONLY, nil)
	if err != nil {
		return "", nil // it is made anew, or opening it tells why not
	}
	defer unix.Close(fd)
	if warn, err = r.changed(fd, e); err != nil {
		return "", err
	}
	want, data, err := r.messages(e)
	if err != nil {
		return "", err
	}
	_, err = r.mayFill(fd, want, data, e)
	return warn, err
}

// changed tells what of a queue is not as it was: an error, or with the policy files=changed a warning.
func (r *mqueueRec) changed(fd int, e *Env) (string, error) {
	a, err := mqGetAttr(fd)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return "", fmt.Errorf("message queue /%s: %w", r.Name, err)
	}
	if a.maxMsg != r.MaxMsg || a.msgSize != r.MsgSize {
		return "", fmt.Errorf("message queue /%s holds %d messages of %d bytes now, and held %d of %d; remove it (rm /dev/mqueue/%s, if that is mounted) if nobody needs it",
			r.Name, a.maxMsg, a.msgSize, r.MaxMsg, r.MsgSize, r.Name)
	}
	var all []string
	want, _, err := r.messages(e)
	if err != nil {
		return "", err
	}
	if a.current > 0 && len(want) == 0 { // what others have sent meanwhile is theirs
		all = append(all, fmt.Sprintf("was empty and has messages now (%d)", a.current))
	}
	if st.Mode&0o7777 != r.Mode || st.Uid != r.UID || st.Gid != r.GID {
		all = append(all, fmt.Sprintf("has mode %#o and owner %d:%d now, and had %#o and %d:%d", st.Mode&0o7777, st.Uid, st.Gid, r.Mode, r.UID, r.GID))
	}
	if len(all) == 0 {
		return "", nil
	}
	text := fmt.Sprintf("message queue /%s %s", r.Name, strings.Join(all, ", and "))
	if e.strict() {
		return "", fmt.Errorf("%s; restore it without files=strict, or make the queue what it was", text)
	}
	return text, nil
}

func (k mqueue) Open(rec *image.File, e *Env) (int, error) {
	r, err := k.record(rec)
	if err != nil {
		return -1, err
	}
	var fd int
	if r.Unlinked {
		fd, err = r.openUnlinked(rec, e)
	} else {
		fd, err = r.openNamed(rec, e)
	}
	if err != nil {
		return -1, fmt.Errorf("message queue /%s: %w", r.Name, err)
	}
	return finished(fd, rec.Flags, 0, rec.Pos)
}

func (r *mqueueRec) openNamed(rec *image.File, e *Env) (int, error) {
	fd, err := mqOpen(r.Name, openFlags(rec.Flags), nil)
	if errors.Is(err, unix.ENOENT) {
		if err = r.create(r.Name); err != nil {
			return -1, err
		}
		if e.Undo != nil {
			e.Undo(func() error { return mqUnlink(r.Name) })
		}
		fd, err = mqOpen(r.Name, openFlags(rec.Flags), nil)
	}
	if err != nil {
		return -1, err
	}
	warn, err := r.changed(fd, e)
	if err == nil {
		err = r.fill(r.Name, e)
	}
	if err != nil {
		unix.Close(fd) // never used
		return -1, err
	}
	if warn = once(e, warn); warn != "" {
		e.Warn("%s", warn)
	}
	return fd, nil
}

// unnamed is a queue that has a name as long as files are being opened.
type unnamed struct{ name string }

func (u *unnamed) Close() error { return mqUnlink(u.name) }

// openUnlinked opens a queue that no name leads to; the first to ask makes it.
func (r *mqueueRec) openUnlinked(rec *image.File, e *Env) (int, error) {
	u, err := shared(e, inodeKey("mqueue", r.Dev, r.Ino), func() (*unnamed, error) {
		name := r.Name
		err := r.create(name)
		for n := 0; errors.Is(err, unix.EEXIST) && n < 100; n++ {
			name = "ckptfs-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(n)
			err = r.create(name)
		}
		if err != nil {
			return nil, err
		}
		if name != r.Name {
			e.Warn("message queue /%s was removed while it was open, and another one has that name now: it shows as /%s", r.Name, name)
		}
		if err := r.fill(name, e); err != nil {
			return nil, errors.Join(err, mqUnlink(name))
		}
		return &unnamed{name}, nil
	})
	if err != nil {
		return -1, err
	}
	return mqOpen(u.name, openFlags(rec.Flags), nil)
}

// create makes a queue, with its mode and owner.
func (r *mqueueRec) create(name string) error {
	fd, err := mqOpen(name, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL, &mqAttr{maxMsg: r.MaxMsg, msgSize: r.MsgSize})
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: it holds %d messages of %d bytes; raise fs.mqueue.msg_max and fs.mqueue.msgsize_max, or restore with CAP_SYS_RESOURCE", err, r.MaxMsg, r.MsgSize)
	case errors.Is(err, unix.EMFILE):
		return errors.New("the limit of memory in message queues does not allow it; raise it (ulimit -q) for ckptfs")
	case err != nil:
		return err
	}
	defer unix.Close(fd) // nothing is buffered
	err = unix.Fchown(fd, int(r.UID), int(r.GID))
	if err == nil {
		err = unix.Fchmod(fd, r.Mode)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("set its owner and mode: %w", err), mqUnlink(name))
	}
	return nil
}

// mqOpen is mq_open(3). A queue that it makes has no permissions but for its owner. The descriptor closes
// by exec anyway; with O_CLOEXEC its description would show that for every other descriptor, too.
func mqOpen(name string, flags int, attr *mqAttr) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), uintptr(flags&^unix.O_CLOEXEC), 0o600, uintptr(unsafe.Pointer(attr)), 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("mq_open: %w", errno)
	}
	return int(fd), nil
}

func mqUnlink(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(p)), 0, 0); errno != 0 && errno != unix.ENOENT {
		return fmt.Errorf("mq_unlink /%s: %w", name, errno)
	}
	return nil
}

// mqGetAttr is mq_getattr(3).
func mqGetAttr(fd int) (a mqAttr, err error) {
	if _, _, errno := unix.Syscall(unix.SYS_MQ_GETSETATTR, uintptr(fd), 0, uintptr(unsafe.Pointer(&a))); errno != 0 {
		return a, errno
	}
	return a, nil
}

// mqNotified returns the process that gets a signal when a message comes, or 0. What the file reads
// as is not its messages, and a description of our own leaves the offset alone.
func mqNotified(fd int) (int, error) {
	own, err := reopen(fd, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(own) // opened for reading
	b := make([]byte, 256)
	n, err := unix.Pread(own, b, 0)
	if err != nil {
		return 0, err
	}
	return notifyPID(string(b[:n]))
}

// notifyPID parses what a queue reads as: "QSIZE:0 NOTIFY:0 SIGNO:0 NOTIFY_PID:0".
func notifyPID(text string) (int, error) {
	for _, word := range strings.Fields(text) {
		if v, ok := strings.CutPrefix(word, "NOTIFY_PID:"); ok {
			return strconv.Atoi(v)
		}
	}
	return 0, fmt.Errorf("there is no NOTIFY_PID in %q", text)
}
