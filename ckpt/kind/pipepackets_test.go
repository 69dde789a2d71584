package kind

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// piece is one write into a pipe.
type piece struct {
	n      int
	packet bool
}

// put writes pieces into the pipe w, and returns all bytes.
func put(t *testing.T, w int, pieces []piece) (all []byte) {
	t.Helper()
	flags := flagsOf(t, w)
	for _, p := range pieces {
		set := flags &^ unix.O_DIRECT
		if p.packet {
			set |= unix.O_DIRECT
		}
		_, err := unix.FcntlInt(uintptr(w), unix.F_SETFL, int(set))
		must(t, err)
		b := noise(p.n)
		if n, err := unix.Write(w, b); err != nil || n != p.n {
			t.Fatalf("wrote %d of %d: %v", n, p.n, err)
		}
		all = append(all, b...)
	}
	_, err := unix.FcntlInt(uintptr(w), unix.F_SETFL, int(flags))
	must(t, err)
	return all
}

// reads is what reads of a size that holds everything return.
func reads(t *testing.T, r int) (all [][]byte) {
	t.Helper()
	_, err := unix.FcntlInt(uintptr(r), unix.F_SETFL, unix.O_NONBLOCK)
	must(t, err)
	b := make([]byte, 1<<20)
	for {
		n, err := unix.Read(r, b)
		if err == unix.EAGAIN {
			return all
		}
		must(t, err)
		all = append(all, bytes.Clone(b[:n]))
	}
}

var packetCases = map[string][]piece{
	"one":             {{3, true}},
	"one of one byte": {{1, true}},
	"some":            {{3, true}, {1, true}, {1, true}, {4096, true}, {4095, true}, {7, true}},
	"bytes first":     {{4096, false}, {5, true}, {6, true}},
	"bytes last":      {{5, true}, {6, true}, {7, false}},
	"mixed":           {{1, true}, {8192, false}, {4096, true}, {3, false}, {4096, true}, {5000, false}},
	"merged":          {{5, false}, {6, true}}, // the kernel adds the packet to the bytes
	"full":            slices.Repeat([]piece{{2, true}}, 16),
	"bytes":           {{5, false}, {4096, false}, {1, false}},
}

func TestPipePackets(t *testing.T) {
	for name, pieces := range packetCases {
		for _, flags := range []int{0, unix.O_DIRECT | unix.O_NONBLOCK} {
			t.Run(fmt.Sprint(name, flags), func(t *testing.T) {
				r, w := newPipe(t, flags, 16*4096, nil)
				all := put(t, w, pieces)
				_, got := roundTrip(t, r, w)
				for _, fd := range []int{got[1], w} { // what comes next keeps apart, too
					if name == "full" {
						continue // it would wait
					}
					if n, err := unix.Write(fd, []byte("z")); n != 1 || err != nil {
						t.Fatal(n, err)
					}
				}
				want, is := reads(t, r), reads(t, got[0])
				if !slices.EqualFunc(want, is, bytes.Equal) {
					t.Errorf("%d reads, were %d", len(is), len(want))
				}
				if whole := bytes.Join(is, nil); !bytes.HasPrefix(whole, all) {
					t.Error("the content is another one")
				}
			})
		}
	}
}

// TestPacketParts wants to know the parts exactly, and a pipe that is left as it was.
func TestPacketParts(t *testing.T) {
	r, w := newPipe(t, 0, 16*4096, nil)
	all := put(t, w, packetCases["mixed"])
	for range 2 {
		c, err := peek(r)
		must(t, err)
		want := []pipePart{{1, true}, {8192, false}, {4096, true}, {3, false}, {4096, true}, {5000, false}}
		if !slices.Equal(c.parts, want) || !bytes.Equal(c.data, all) {
			t.Errorf("parts %v, want %v", c.parts, want)
		}
	}
	if c, err := peek(r); err != nil || len(c.data) != len(all) {
		t.Error(err)
	}
	// Bytes that came by tee, and a packet that therefore is not added to them.
	r, w = newPipe(t, 0, 16*4096, nil)
	must(t, writeApart(w, []byte("bytes")))
	put(t, w, []piece{{6, true}})
	_, got := roundTrip(t, r, w)
	for _, fd := range []int{r, got[0]} {
		if c, err := peek(fd); err != nil || !slices.Equal(c.parts, []pipePart{{5, false}, {6, true}}) {
			t.Error(c.parts, err)
		}
	}
	// A packet that was read in part is gone, one of bytes is not.
	r, w = newPipe(t, 0, 16*4096, nil)
	put(t, w, []piece{{10, true}, {20, true}})
	_, err := unix.Read(r, make([]byte, 4))
	must(t, err)
	if c, err := peek(r); err != nil || !slices.Equal(c.parts, []pipePart{{20, true}}) {
		t.Error(c.parts, err)
	}
}

func TestPipeMany(t *testing.T) {
	r, w := newPipe(t, 0, 4096*256, nil)
	pieces := slices.Repeat([]piece{{9, true}}, 256)
	put(t, w, pieces)
	_, got := roundTrip(t, r, w)
	if all := reads(t, got[0]); len(all) != 256 {
		t.Errorf("%d packets", len(all))
	}
	if b, err := os.ReadFile("/proc/sys/fs/pipe-max-size"); err != nil || len(b) > 7 {
		t.Logf("pipe-max-size %q, %v", b, err)
	}
	r, w = newPipe(t, 0, 4096, nil)
	if _, err := unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, 32<<20); err != nil {
		t.Logf("a pipe of more than %d packets needs CAP_SYS_RESOURCE: %v", maxPackets, err)
		return
	}
	put(t, w, slices.Repeat([]piece{{1, true}}, maxPackets+1))
	s := newStage(t)
	s.add(r, w)
	refused(t, s.check(), "more than 1024 packets")
}

func TestFifoPackets(t *testing.T) {
	path, _, _ := newFifo(t, "")
	fd := open(t, path, unix.O_RDWR|unix.O_NONBLOCK)
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_DIRECT|unix.O_NONBLOCK)
	must(t, err)
	put(t, fd, []piece{{3, true}, {4, true}})
	s, got := roundTrip(t, fd) // it is still open: what is in it is compared
	if all := reads(t, got[0]); len(all) != 2 {
		t.Errorf("%d packets", len(all))
	}
	// Somebody has put the same bytes in, but not the same packets.
	other := open(t, path, unix.O_RDWR|unix.O_NONBLOCK)
	_, err = unix.Write(other, s.blobs[0])
	must(t, err)
	if _, err := s.open(); err == nil {
		t.Error("other packets were taken for the same")
	}
}

// TestFifoPacketsGone has a fifo with packets deleted.
func TestFifoPacketsGone(t *testing.T) {
	path, _, _ := newFifo(t, "")
	fd := open(t, path, unix.O_RDWR|unix.O_NONBLOCK)
	put(t, fd, []piece{{3, true}, {4, true}})
	must(t, os.Remove(path))
	_, got := roundTrip(t, fd)
	if all := reads(t, got[0]); len(all) != 2 {
		t.Errorf("%d packets", len(all))
	}
}

func TestPacketsHostile(t *testing.T) {
	s := newStage(t)
	s.blobs = [][]byte{make([]byte, 9000)}
	for _, parts := range [][]pipePart{
		{{9000, true}}, {{4096, true}}, {{-1, true}, {9001, false}}, {{0, true}, {9000, false}}, {{9001, false}}, {{4096, true}, {4096, true}, {4096, true}},
	} {
		rec := image.File{Kind: "pipe", Flags: unix.O_RDONLY, Blob: 1, Path: "pipe:[1]"}
		must(t, encodeRec(&rec, &pipeRec{identity: identity{Ino: 1}, Capacity: 65536, Parts: parts}))
		s.env.Manifest.Files = []image.File{rec}
		if fd, err := (pipe{}).Open(&rec, s.env); err == nil {
			unix.Close(fd)
			t.Errorf("%v accepted", parts)
		}
		must(t, s.closeShared())
	}
}
