package lazy

import (
	"encoding/binary"
	"errors"

	"github.com/ckptfs/ckptfs/ckpt/uffd"
	"golang.org/x/sys/unix"
)

// Features are what the userfaultfd of a lazy process must tell and do, or memory would come out wrong. It is made without
// uffd.UserModeOnly.
const Features = uffd.Fork | uffd.Remap | uffd.Remove | uffd.Unmap | uffd.ThreadID | uffd.Poison

const pageSize = 4096

// Probe reports whether this process may do what a lazy restore needs.
func Probe() error {
	fd, err := uffd.New(unix.O_CLOEXEC | unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer fd.Close()
	return fd.Init(Features)
}

// gone reports whether the memory behind a userfaultfd is no more: the process has ended or
// executes another program.
func gone(fd int) bool {
	_, err := uffd.FD(fd).Zero(0, pageSize)
	return errors.Is(err, unix.ESRCH)
}

// Events of linux/userfaultfd.h.
const (
	eventFault  = 0x12
	eventFork   = 0x13
	eventRemap  = 0x14
	eventRemove = 0x15
	eventUnmap  = 0x16

	messageLen = 32
)

// message is a struct uffd_msg.
type message struct {
	event byte
	a     [3]uint64 // its arguments
}

func parseMessage(b []byte) message {
	le := binary.LittleEndian
	return message{b[0], [3]uint64{le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}}
}

// fault is the address of a fault and the thread that waits.
func (m *message) fault() (addr uint64, tid int) { return m.a[1], int(uint32(m.a[2])) }

// fork is the userfaultfd of a child.
func (m *message) fork() int { return int(uint32(m.a[0])) }
