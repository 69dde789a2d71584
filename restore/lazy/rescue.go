package lazy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Rescue is what the guard executes when the page server has been killed. It has the server's
// descriptors: the pidfds of the processes that are lazy, and their userfaultfds, which nobody else
// holds now. What the server had read and not done yet nobody knows, so the processes cannot go
// on: they are killed. A child whose pid the server did not know is killed when it waits for a
// page. So none of them ever reads a zero that should be data.
func Rescue(logPath string) error {
	log, err := openLog(logPath)
	if err != nil {
		return err
	}
	log.bad = true                                               // it may hold why the server has crashed
	_ = os.Remove(strings.TrimSuffix(logPath, ".log") + ".sock") // who asks is told that there is no server
	uffds, err := inherited(log)
	if err != nil {
		log.trouble(err.Error())
	}
	for {
		left := uffds[:0]
		for _, fd := range uffds {
			more, over := execute(fd, log)
			uffds = append(uffds, more...)
			if !over {
				left = append(left, fd)
			}
		}
		uffds = left
		if len(uffds) == 0 {
			return log.close()
		}
		time.Sleep(time.Millisecond)
	}
}

// inherited kills the processes that we have pidfds of, and returns the userfaultfds.
func inherited(log *logFile) (uffds []int, err error) {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		to, err := os.Readlink("/proc/self/fd/" + n.Name())
		if err != nil {
			continue // that of the listing
		}
		if to == "anon_inode:[userfaultfd]" {
			uffds = append(uffds, fd)
			continue
		}
		if pid := pidOf(fd); pid > 0 && pid != os.Getpid() {
			kill(log, pid, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
		}
	}
	return uffds, nil
}

// kill says what has become of a process.
func kill(log *logFile, pid int, err error) {
	switch {
	case errors.Is(err, unix.ESRCH): // it had ended
	case err != nil:
		log.trouble(fmt.Sprintf("the page server was killed, and pid %d, whose memory it had, cannot be: %v; end it, its memory is not whole", pid, err))
	default:
		log.trouble(fmt.Sprintf("the page server was killed before all memory of pid %d had come: pid %d is killed too, as it would read zeros for data; restore it again", pid, pid))
	}
}

// pidOf is the pid that a pidfd is of, or 0.
func pidOf(fd int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if v, ok := strings.CutPrefix(string(line), "Pid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v)) // -1: it has ended
			return n
		}
	}
	return 0
}

// execute kills who waits for a page of a userfaultfd. More are those of children that have been
// forked meanwhile; over: the memory is no more.
func execute(fd int, log *logFile) (more []int, over bool) {
	buf := make([]byte, 32*messageLen)
	n, err := unix.Read(fd, buf)
	if err != nil && gone(fd) {
		return nil, true
	}
	for b := buf[:max(n, 0)]; len(b) >= messageLen; b = b[messageLen:] {
		switch m := parseMessage(b); m.event {
		case eventFault:
			_, tid := m.fault()
			if pid := owner(tid); pid != 0 {
				kill(log, pid, unix.Kill(pid, unix.SIGKILL))
			} else if !gone(fd) {
				log.trouble(fmt.Sprintf("the page server was killed, and a thread with the id %d in its own pid namespace waits for memory for ever; end it", tid))
			}
		case eventFork:
			more = append(more, m.fork())
		}
	}
	return more, false
}
