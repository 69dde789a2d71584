package kmem

import (
	"encoding/binary"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestAIO makes a context, with requests that have ended and one that has not.
func TestAIO(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	var ctx uint64
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 200, uintptr(unsafe.Pointer(&ctx)), 0); errno != 0 {
		t.Fatal(errno)
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, uintptr(ctx), 0, 0)
	look := func(inFlight int) {
		t.Helper()
		all, err := m.AIOs(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 || all[0].Addr != ctx || all[0].MaxReqs != 200 || all[0].NREvents < 400 || all[0].InFlight != inFlight {
			t.Errorf("%+v, want the one at %#x for 200 with %d in flight", all, ctx, inFlight)
		}
	}
	submit := func(op uint16, fd int, arg uint64) {
		t.Helper()
		iocb := make([]byte, 64) // struct iocb of linux/aio_abi.h
		binary.LittleEndian.PutUint16(iocb[16:], op)
		binary.LittleEndian.PutUint32(iocb[20:], uint32(fd))
		binary.LittleEndian.PutUint64(iocb[24:], arg)
		list := [1]uintptr{uintptr(unsafe.Pointer(&iocb[0]))}
		n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, uintptr(ctx), 1, uintptr(unsafe.Pointer(&list[0])))
		runtime.KeepAlive(iocb)
		if n != 1 {
			t.Fatal(errno)
		}
	}
	look(0)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	for range 30 {
		submit(0, null, uint64(uintptr(unsafe.Pointer(&ctx)))) // IOCB_CMD_PREAD of nothing
	}
	look(0)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	submit(5, p[0], unix.POLLIN) // IOCB_CMD_POLL
	look(1)
	unix.Close(p[1])
	defer unix.Close(p[0])
	for range 5000 { // it ends when the kernel comes to it
		if all, _ := m.AIOs(os.Getpid()); len(all) == 1 && all[0].InFlight == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	look(0)
	events := make([]byte, 32*10)
	if n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, uintptr(ctx), 10, 10, uintptr(unsafe.Pointer(&events[0])), 0, 0); n != 10 {
		t.Fatal(errno)
	}
	look(0)
}
