package kind

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// TestUnixPeekOffset is of a program that uses SO_PEEK_OFF itself.
func TestUnixPeekOffset(t *testing.T) {
	a, b := unixPair(t, unix.SOCK_STREAM)
	sendAll(t, a, []byte("0123456789"))
	must(t, unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 3))
	_, got := roundTrip(t, a, b)
	for _, fd := range []int{b, got[1]} {
		buf := make([]byte, 4)
		for _, want := range []string{"3456", "789"} {
			if n, _, err := unix.Recvfrom(fd, buf, unix.MSG_PEEK); err != nil || string(buf[:n]) != want {
				t.Errorf("peeked %q %v, want %q", buf[:n], err, want)
			}
		}
	}
}

// TestUnixEmpty has messages of no bytes, which can be seen only once by their offset.
func TestUnixEmpty(t *testing.T) {
	for _, typ := range []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		a, b := unixPair(t, typ)
		sendAll(t, a, nil, []byte("x"), nil, nil, noise(70_000))
		_, got := roundTrip(t, a, b)
		s := newStage(t)
		s.add(a, b)
		f := s.scene.Files[1]
		if err := (unixSock{}).Dump(f, s.scene, &image.File{}); err == nil || !strings.Contains(err.Error(), "2 empty messages wait in it that a look before has hidden") {
			t.Errorf("a second look: %v", err)
		}
		for _, fd := range []int{b, got[1]} {
			buf := make([]byte, 99_999)
			for i, want := range []int{0, 1, 0, 0, 70_000} {
				if n, _, err := unix.Recvfrom(fd, buf, 0); err != nil || n != want {
					t.Errorf("message %d has %d bytes %v, want %d", i, n, err, want)
				}
			}
		}
		sendAll(t, a, nil, nil)
		must(t, unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
		sendAll(t, a, []byte("other"))
		for range 2 {
			_, msgs, err := (&Scene{}).peekQueue(b, uint8(typ), waitsIn(t, b))
			if err != nil || len(msgs) < 2 || msgs[0].Len != 0 {
				t.Errorf("%v %v", msgs, err)
			}
		}
	}
}

// TestPeekKilled kills who looks at queues, at any moment: the sockets have their own settings afterwards.
func TestPeekKilled(t *testing.T) {
	a, b := unixPair(t, unix.SOCK_STREAM)
	sendAll(t, a, []byte("some"))
	rights(t, a, "files", 0, 1)
	sendAll(t, a, []byte("more"))
	c, d := unixPair(t, unix.SOCK_SEQPACKET)
	sendAll(t, c, []byte("some"), []byte("more"), []byte("end"))
	before := unixState(t, b) + unixState(t, d)
	for i := range 60 {
		looker := exec.Command(os.Args[0], "-test.run=^TestPeekHelper$")
		looker.Env = append(os.Environ(), "CKPTFS_PEEK=1")
		looker.ExtraFiles = []*os.File{os.NewFile(uintptr(mustDup(t, b)), "b"), os.NewFile(uintptr(mustDup(t, d)), "d")}
		out, err := looker.StdoutPipe()
		must(t, err)
		must(t, looker.Start())
		for _, f := range looker.ExtraFiles {
			f.Close()
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		must(t, looker.Process.Kill())
		_ = looker.Wait() // it was killed
		for end := time.Now().Add(5 * time.Second); unixState(t, b)+unixState(t, d) != before; {
			if time.Now().After(end) {
				t.Fatalf("kill %d left %s\nand %s, was %s", i, unixState(t, b), unixState(t, d), before)
			}
		}
	}
}

func mustDup(t *testing.T, fd int) int {
	t.Helper()
	n, err := dup(fd)
	must(t, err)
	return n
}

// TestPeekHelper looks at queues for TestPeekKilled until it is killed.
func TestPeekHelper(t *testing.T) {
	if os.Getenv("CKPTFS_PEEK") == "" {
		return
	}
	for i := range 1_000_000 {
		for fd, typ := range map[int]uint8{3: unix.SOCK_STREAM, 4: unix.SOCK_SEQPACKET} {
			_, msgs, err := (&Scene{}).peekQueue(fd, typ, waitsIn(t, fd))
			if err != nil || len(msgs) != 3 {
				t.Fatal(msgs, err)
			}
			closeMsgs(msgs)
		}
		if i == 0 {
			fmt.Println("it looks")
		}
	}
}

// waitsIn is what waits in a socket.
func waitsIn(t *testing.T, fd int) int16 {
	t.Helper()
	r, err := polled(fd, unix.POLLIN|unix.POLLPRI)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
