package sysv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags of msgrcv(2), from linux/msg.h.
const (
	MsgNoError = 0o10000
	msgCopy    = 0o40000 // needs CONFIG_CHECKPOINT_RESTORE
	IPCNoWait  = 0o4000
)

// MaxMessage bounds a message: kernel.msgmax cannot be more. In bytes.
const MaxMessage = 1<<31 - 1

// Message is one message of a queue.
type Message struct {
	Type int64
	Text []byte
}

// Copy reads the messages of a queue, the oldest first, and takes none out.
func Copy(q *Msg) ([]Message, error) {
	buf := make([]byte, 8+q.Bytes)
	var out []Message
	for i := uint64(0); i < q.Count; i++ {
		n, _, errno := unix.Syscall6(unix.SYS_MSGRCV, uintptr(q.ID), uintptr(unsafe.Pointer(&buf[0])), uintptr(q.Bytes), uintptr(i), msgCopy|IPCNoWait, 0)
		if errno == unix.ENOSYS {
			return nil, errors.New("the kernel cannot copy messages: it was built without CONFIG_CHECKPOINT_RESTORE")
		}
		if errno != 0 {
			return nil, fmt.Errorf("copy message %d of queue %d: %w", i, q.ID, errno)
		}
		m := Message{Type: int64(binary.NativeEndian.Uint64(buf)), Text: make([]byte, n)}
		copy(m.Text, buf[8:])
		out = append(out, m)
	}
	return out, nil
}

// QBytes reads how many bytes a queue may hold.
func QBytes(id int32) (uint64, error) {
	var b [256]byte // struct msqid64_ds
	if err := ctl("msg", id, IPCStat, unsafe.Pointer(&b[0])); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(b[msgQBytes:]), nil
}

// msgQBytes is the offset of msg_qbytes in struct msqid64_ds (asm-generic/msgbuf.h): behind the permissions,
// three times and two numbers.
const msgQBytes = 48 + 5*8

// SetQueue sets owner, permissions and the bytes that a queue may hold; more than kernel.msgmnb needs CAP_SYS_RESOURCE.
func SetQueue(p *Perm, qbytes uint64) error {
	var b [256]byte
	if err := ctl("msg", p.ID, IPCStat, unsafe.Pointer(&b[0])); err != nil {
		return err
	}
	perm := (*ipcPerm)(unsafe.Pointer(&b[0]))
	perm.UID, perm.GID, perm.Mode = p.UID, p.GID, p.Mode&0o777
	binary.NativeEndian.PutUint64(b[msgQBytes:], qbytes)
	return ctl("msg", p.ID, IPCSet, unsafe.Pointer(&b[0]))
}

// Pack puts messages one behind the other: type and length, each of 8 bytes, little endian, and the text.
func Pack(all []Message) []byte {
	var b []byte
	for _, m := range all {
		b = binary.LittleEndian.AppendUint64(b, uint64(m.Type))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(m.Text)))
		b = append(b, m.Text...)
	}
	return b
}

// Unpack takes them apart again; n is how many there are. The texts are parts of b.
func Unpack(b []byte, n int) ([]Message, error) {
	var out []Message
	for len(b) > 0 {
		if len(b) < 16 {
			return nil, errors.New("messages that end early")
		}
		typ, length := int64(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:])
		if b = b[16:]; typ < 1 || length > uint64(len(b)) {
			return nil, fmt.Errorf("a message of type %d with %d bytes, where %d are left", typ, length, len(b))
		}
		out = append(out, Message{typ, b[:length:length]})
		b = b[length:]
	}
	if len(out) != n {
		return nil, fmt.Errorf("%d messages, not %d", len(out), n)
	}
	return out, nil
}
