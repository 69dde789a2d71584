package kind

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// newQueue makes a queue for 4 messages of 64 bytes.
func newQueue(t *testing.T, name string, flags int) int {
	t.Helper()
	fd, err := mqOpen(name, unix.O_CREAT|flags, &mqAttr{maxMsg: 4, msgSize: 64})
	must(t, err)
	t.Cleanup(func() { unix.Close(fd); must(t, mqUnlink(name)) })
	return fd
}

func queueName(t *testing.T) string {
	return fmt.Sprintf("ckptfs-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
}

func send(t *testing.T, fd int, text string) {
	t.Helper()
	_, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDSEND, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData(text))), uintptr(len(text)), 1, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
}

func TestMQueueNamed(t *testing.T) {
	name := queueName(t)
	fd := newQueue(t, name, unix.O_RDWR|unix.O_NONBLOCK)
	w, err := mqOpen(name, unix.O_WRONLY, nil)
	must(t, err)
	defer unix.Close(w)
	must(t, unix.Fchmod(fd, 0o640))
	must(t, unix.Fchown(fd, 33, 34))
	roundTrip(t, fd, w) // it is still there

	s := newStage(t)
	s.add(fd, w)
	s.dump()
	must(t, mqUnlink(name))
	undone := 0
	var undo func() error
	s.env.Undo = func(f func() error) { undone++; undo = f }
	fds, err := s.open()
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(fds[0], &st))
	a, err := mqGetAttr(fds[1])
	must(t, err)
	if st.Mode&0o7777 != 0o640 || st.Uid != 33 || st.Gid != 34 || a.maxMsg != 4 || a.msgSize != 64 || undone != 1 || len(s.warned) != 0 {
		t.Errorf("%o %d:%d %+v, %d undos, %q", st.Mode, st.Uid, st.Gid, a, undone, s.warned)
	}
	send(t, fds[1], "hi")
	if a, err = mqGetAttr(fds[0]); err != nil || a.current != 1 {
		t.Errorf("they are two queues: %+v, %v", a, err)
	}
	must(t, undo())
	if fd, err := mqOpen(name, unix.O_RDONLY, nil); err == nil {
		t.Errorf("it is there after a restore that failed: %d", fd)
	}
}

func TestMQueueChanged(t *testing.T) {
	name := queueName(t)
	fd := newQueue(t, name, unix.O_RDWR)
	s := newStage(t)
	s.add(fd)
	rec := s.dump()[0]
	send(t, fd, "later")
	must(t, unix.Fchmod(fd, 0o600))
	must(t, unix.Fchown(fd, 1, 0))
	warn, err := mqueue{}.CheckOpen(&rec, s.env)
	if err != nil || !strings.Contains(warn, "was empty and has messages now (1), and has mode 0600 and owner 1:0 now") {
		t.Errorf("%q, %v", warn, err)
	}
	s.env.Policy = map[string]string{"files": "strict"}
	if _, err := s.open(); err == nil || !strings.Contains(err.Error(), "without files=strict") {
		t.Errorf("%v", err)
	}
	must(t, mqUnlink(name))
	other, err := mqOpen(name, unix.O_CREAT|unix.O_RDWR, &mqAttr{maxMsg: 5, msgSize: 64})
	must(t, err)
	defer unix.Close(other)
	if _, err := (mqueue{}).CheckOpen(&rec, s.env); err == nil || !strings.Contains(err.Error(), "holds 5 messages of 64 bytes now, and held 4 of 64") {
		t.Errorf("%v", err)
	}
}

func TestMQueueUnlinked(t *testing.T) {
	name := queueName(t)
	fd := newQueue(t, name, unix.O_RDONLY)
	w, err := mqOpen(name, unix.O_WRONLY|unix.O_NONBLOCK, nil)
	must(t, err)
	defer unix.Close(w)
	must(t, mqUnlink(name))
	_, fds := roundTrip(t, fd, w)
	send(t, fds[1], "hi")
	if a, err := mqGetAttr(fds[0]); err != nil || a.current != 1 {
		t.Errorf("they are two queues: %+v, %v", a, err)
	}
	if a, err := mqGetAttr(fd); err != nil || a.current != 0 {
		t.Errorf("the old one has the message: %+v, %v", a, err)
	}

	s := newStage(t)
	s.add(fd)
	s.dump()
	newQueue(t, name, unix.O_RDONLY) // another one has its name
	_, err = s.open()
	must(t, err)
	if len(s.warned) != 1 || !strings.Contains(s.warned[0], "another one has that name now") {
		t.Errorf("%q", s.warned)
	}
	s.outside[unix.O_WRONLY] = 4711
	refused(t, s.check(), "has no name any more", "pid 4711")
}

func TestMQueueHostile(t *testing.T) {
	good := mqueueRec{Name: "x", MaxMsg: 1, MsgSize: 1}
	for what, spoil := range map[string]func(r *mqueueRec){
		"no name": func(r *mqueueRec) { r.Name = "" }, "no name of": func(r *mqueueRec) { r.Name = "../x" },
		"that is no name": func(r *mqueueRec) { r.Name = strings.Repeat("x", 256) }, "-1 messages": func(r *mqueueRec) { r.MaxMsg = -1 },
		"messages of 1073741824": func(r *mqueueRec) { r.MsgSize = 1 << 30 }, "the mode": func(r *mqueueRec) { r.Mode = 0o100600 },
		"its signal 65": func(r *mqueueRec) { r.Notify = &mqNotify{PID: 1, Signal: 65} }, "pid 0": func(r *mqueueRec) { r.Notify = &mqNotify{Signal: 1} },
	} {
		r := good
		spoil(&r)
		var rec image.File
		must(t, encodeRec(&rec, &r))
		if _, err := (mqueue{}).Open(&rec, newStage(t).env); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzNotifyPID(f *testing.F) {
	f.Add("QSIZE:0          NOTIFY:0     SIGNO:10     NOTIFY_PID:77     \n")
	f.Add("NOTIFY_PID:")
	f.Fuzz(func(t *testing.T, s string) { _, _ = notifyPID(s) })
}

// mqFill sends messages of several priorities, one of several pages, and returns what will be received.
func mqFill(t *testing.T, fd int) (list []mqMessage, data []byte) {
	t.Helper()
	long := make([]byte, 8000)
	for i := range long {
		long[i] = byte(i * 7)
	}
	var in []mqMessage
	var all []byte
	for i, text := range []string{"a", "", string(long), "b", "c", "", "d"} {
		in, all = append(in, mqMessage{[]uint32{3, 0, 7, 3, 0, 32767, 3}[i], uint32(len(text))}), append(all, text...)
	}
	must(t, mqSendAll(fd, in, all))
	list, data, err := mqMessages(&Found{FD: fd})
	must(t, err)
	want := []mqMessage{{32767, 0}, {7, 8000}, {3, 1}, {3, 1}, {3, 1}, {0, 0}, {0, 1}}
	if !slices.Equal(list, want) || string(data) != string(long)+"abdc" {
		t.Fatalf("%v, %d bytes", list, len(data))
	}
	return list, data
}

func bigQueue(t *testing.T, name string) int {
	t.Helper()
	fd, err := mqOpen(name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NONBLOCK, &mqAttr{maxMsg: 10, msgSize: 8192})
	must(t, err)
	t.Cleanup(func() { unix.Close(fd); mqUnlink(name) })
	return fd
}

// TestMQueueMessages: a queue is read without taking anything out, and made anew with its messages: when
// it is gone, had no name, or is there and has others.
func TestMQueueMessages(t *testing.T) {
	name := queueName(t)
	fd := bigQueue(t, name)
	list, data := mqFill(t, fd)
	same := func(what string, fd int) {
		t.Helper()
		l, d, err := mqTakeAll(fd, 8192)
		must(t, err)
		if !slices.Equal(l, list) || !bytes.Equal(d, data) {
			t.Errorf("%s: %v, %d bytes", what, l, len(d))
		}
	}
	s := newStage(t)
	s.add(fd)
	s.dump()
	got, err := s.open() // it is there, with the same messages
	must(t, err)
	same("there", got[0])
	got, err = s.open() // it is there and empty
	must(t, err)
	same("empty", got[0])
	must(t, mqSendAll(fd, []mqMessage{{5, 3}}, []byte("new")))
	s.env.Policy = map[string]string{"ipc": "refuse"}
	if _, err := s.open(); err == nil || !strings.Contains(err.Error(), "with other messages (1) than the image has (7), by the policy ipc=refuse") {
		t.Errorf("%v", err)
	}
	s.env.Policy = nil
	var undo []func() error
	s.env.Undo = func(f func() error) { undo = append(undo, f) }
	s.warned = nil
	_, err = s.open()
	must(t, err)
	if len(s.warned) != 1 || !strings.Contains(s.warned[0], "had 1 messages, and has the 7 of the image now") {
		t.Errorf("%q", s.warned)
	}
	for _, f := range undo {
		must(t, f())
	}
	l, d, err := mqTakeAll(fd, 8192)
	must(t, err)
	if !slices.Equal(l, []mqMessage{{5, 3}}) || string(d) != "new" {
		t.Errorf("after a restore that failed: %v %q", l, d)
	}
	must(t, mqUnlink(name))
	got, err = s.open()
	must(t, err)
	same("gone", got[0])
	mqFill(t, fd) // the old one, which has no name
	s = newStage(t)
	s.add(fd)
	s.dump()
	got, err = s.open()
	must(t, err)
	same("unlinked", got[0])
	same("the old one", fd)
}

// TestMQueueHeld: a queue with other messages that another process has open is left alone.
func TestMQueueHeld(t *testing.T) {
	name := queueName(t)
	fd := bigQueue(t, name)
	mqFill(t, fd)
	s := newStage(t)
	s.add(fd)
	rec := s.dump()[0]
	_, _, err := mqTakeAll(fd, 8192)
	must(t, err)
	own, err := unix.Dup(fd)
	must(t, err)
	file := os.NewFile(uintptr(own), "queue")
	defer file.Close()
	child := exec.Command("sleep", "1000")
	child.ExtraFiles = []*os.File{file}
	must(t, child.Start())
	defer child.Wait()
	defer child.Process.Kill()
	if _, err := (mqueue{}).CheckOpen(&rec, s.env); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", child.Process.Pid)) || !strings.Contains(err.Error(), "end that process") {
		t.Errorf("%v", err)
	}
	for what, spoil := range map[string]func(r *mqueueRec){
		"more than fit": func(r *mqueueRec) { r.Messages = make([]mqMessage, 11) },
		"too long":      func(r *mqueueRec) { r.Messages[0].Len = 8193 },
		"priority":      func(r *mqueueRec) { r.Messages[0].Prio = 32768 },
		"order":         func(r *mqueueRec) { r.Messages[6].Prio = 9 },
		"cut":           func(r *mqueueRec) { r.Messages = r.Messages[:6] },
	} {
		r, err := mqueue{}.record(&rec)
		must(t, err)
		spoil(r)
		bad := rec
		must(t, encodeRec(&bad, r))
		s.env.Manifest.Files[0] = bad
		if _, err := (mqueue{}).CheckOpen(&bad, s.env); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}
