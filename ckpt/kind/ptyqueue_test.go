package kind

import (
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// queueCases are states of the input, by what the master has written.
var queueCases = []struct {
	name   string
	change func(tio *unix.Termios)
	typed  string
	out    string
}{
	{"empty", nil, "", ""},
	{"lines", nil, "one\ntwo\n\nfour\n", ""},
	{"line being edited", nil, "one\npart", "some output\r\n"},
	{"only a line being edited", nil, "part", ""},
	{"end of file", nil, "one\nno newline\x04\x04two\n", ""},
	{"quoted", nil, "a\x16\nb\x16\x04c\x16\x16d\x16\x03\npart\x16\x7f", "x"},
	{"other ends", func(tio *unix.Termios) { tio.Cc[unix.VEOL], tio.Cc[unix.VEOL2] = ';', '!' }, "a;b!c\nd;e", ""},
	{"echo", func(tio *unix.Termios) { tio.Lflag |= unix.ECHO }, "abc\ndef", "\x1b[1m"},
	{"raw", func(tio *unix.Termios) {
		tio.Lflag, tio.Iflag, tio.Oflag = 0, 0, 0
		tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 0, 5
	}, "\x00\x03\x04\x11\x13\x16\x1a\xff\r\nrest", "\x00\xff\n"},
	{"readline", func(tio *unix.Termios) { tio.Lflag = unix.ISIG }, "abc\x04\x16", "out"},
	{"long", func(tio *unix.Termios) { tio.Lflag = 0 }, strings.Repeat("0123456789", 390), strings.Repeat("x\n", 3000)},
}

// settle waits until the kernel has moved what was written at the other end to where it is read: poll(2) does that only if
// nothing is there yet, and a busy machine takes its time.
func settle(fd int) {
	for same, last := 0, -1; same < 10; unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil) {
		polled(fd, unix.POLLIN)
		if n := queued(fd, unix.TIOCINQ); n == last {
			same++
		} else {
			same, last = 0, n
		}
	}
}

// TestPTYQueues: what waits at both ends comes back, and stays where it is in the terminal that runs on.
func TestPTYQueues(t *testing.T) {
	for _, c := range queueCases {
		t.Run(c.name, func(t *testing.T) {
			master, path := newTerminal(t)
			slave := open(t, path, unix.O_RDWR|unix.O_NOCTTY)
			setTermios(t, slave, func(tio *unix.Termios) {
				tio.Lflag &^= unix.ECHO
				if c.change != nil {
					c.change(tio)
				}
			})
			want := *termiosOf(t, slave)
			fill := func(master, slave int) {
				typeIn(t, master, c.typed)
				settle(slave)
				if c.out != "" {
					typeIn(t, slave, c.out)
				}
				settle(master)
			}
			fill(master, slave)
			check := func(which string, master, slave int, want, wantOut []string) {
				t.Helper()
				out := strings.Join(ttyReads(t, master), "")
				if out != strings.Join(wantOut, "") {
					t.Errorf("%s: output %q, want %q", which, out, wantOut)
				}
				if got := ttyReads(t, slave); !slices.Equal(got, want) {
					t.Errorf("%s: input %q, want %q", which, got, want)
				}
				if c.change == nil { // end the line that is being edited, with one erased
					typeIn(t, master, "q\x7f!\n")
					unix.Nanosleep(&unix.Timespec{Nsec: 2e6}, nil)
					if got := ttyReads(t, slave); len(got) != 1 || !strings.HasSuffix(got[0], "!\n") || strings.Contains(got[0], "q") {
						t.Errorf("%s: edited line %q", which, got)
					}
				}
			}
			s := newStage(t)
			s.add(master, slave)
			s.scene.Still = true
			must(t, image.Refusals(s.check()))
			s.dump()
			if now := *termiosOf(t, slave); now != want {
				t.Errorf("settings %+v, were %+v", now, want)
			}
			// What a terminal of its own gives that is left alone.
			m2, path2 := newTerminal(t)
			s2 := open(t, path2, unix.O_RDWR|unix.O_NOCTTY)
			must(t, ioctlPtr(s2, unix.TCSETS2, unsafe.Pointer(&want)))
			fill(m2, s2)
			wantOut, wantIn := ttyReads(t, m2), ttyReads(t, s2)
			check("live", master, slave, wantIn, wantOut)
			gone(t, master, slave)
			got, err := s.open()
			must(t, err)
			check("restored", got[0], got[1], wantIn, wantOut)
		})
	}
}
