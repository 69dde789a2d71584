package restore

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// ownFDs is how many descriptors this process has.
func ownFDs(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// numbered opens a file that tells which it is.
func numbered(t *testing.T, n int) int {
	t.Helper()
	fd, err := unix.MemfdCreate(fmt.Sprint(n), unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// which tells what numbered made it of.
func which(t *testing.T, fd int) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Files that are put by have no numbers here, come out as they were, in any order, and are
// gone after close.
func TestDepot(t *testing.T) {
	before := ownFDs(t)
	d := newDepot()
	d.keep, d.size = 10, 50
	const n = 1020
	for i := range n {
		if err := d.put(image.ObjRef(i+1), numbered(t, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.flush(); err != nil {
		t.Fatal(err)
	}
	if have := ownFDs(t) - before; have > 60 {
		t.Errorf("%d descriptors are open for %d files", have, n)
	}
	for _, i := range []int{0, 1, 700, 2, 699, 701, 3} {
		fd, err := d.take(image.ObjRef(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("/memfd:%d (deleted)", i); which(t, fd) != want {
			t.Errorf("file %d is %s", i, which(t, fd))
		}
		closeFD(fd)
	}
	if d.holds(1) || !d.holds(5) || d.holds(n+1) {
		t.Error("it does not know what it holds")
	}
	if _, err := d.take(1); err == nil {
		t.Error("a file was taken twice")
	}
	d.close()
	if after := ownFDs(t); after != before {
		t.Errorf("%d descriptors, before it were %d", after, before)
	}
}

// A queue that is full is followed by another.
func TestDepotQueues(t *testing.T) {
	before := ownFDs(t)
	d := newDepot()
	d.keep, d.size = 0, 1 // a message each
	const n = 2000
	for i := range n {
		if err := d.put(image.ObjRef(i+1), numbered(t, i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.queues) < 2 {
		t.Fatalf("%d messages fit into one queue: the test says nothing", n)
	}
	for i := range n {
		fd, err := d.take(image.ObjRef(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("/memfd:%d (deleted)", i); which(t, fd) != want {
			t.Fatalf("file %d is %s", i, which(t, fd))
		}
		closeFD(fd)
	}
	d.close()
	if after := ownFDs(t); after != before {
		t.Errorf("%d descriptors, before it were %d", after, before)
	}
}

func TestLowestFree(t *testing.T) {
	table := func(nums ...int32) (fds []image.FD) {
		for _, n := range nums {
			fds = append(fds, image.FD{Num: n})
		}
		return fds
	}
	for _, c := range []struct {
		placed  []image.FD
		channel int
		n       int
		want    []int
	}{
		{nil, 0, 3, []int{1, 2, 3}},
		{nil, 7, 2, []int{0, 1}},
		{table(0, 1, 2), 3, 2, []int{4, 5}},
		{table(1, 3), 2, 3, []int{0, 4, 5}},
		{table(19998), 0, 1, []int{1}},
		{table(1, 2), -1, 0, []int{}},
	} {
		if got := lowestFree(c.placed, c.channel, c.n); !slices.Equal(got, c.want) {
			t.Errorf("lowestFree(%v, %d, %d) = %v, want %v", c.placed, c.channel, c.n, got, c.want)
		}
	}
	if n := channelFor(table(0, 1, 3)); n != 2 {
		t.Errorf("the channel of 0, 1, 3 is %d", n)
	}
}

// However a table looks, each file arrives at its number or below, and not where another of
// the same message is moved to before it.
func FuzzPlaces(f *testing.F) {
	f.Add([]byte{1, 1, 1, 1})
	f.Add([]byte{3, 1, 200, 1, 1})
	f.Add([]byte{255, 255, 1})
	f.Fuzz(func(t *testing.T, gaps []byte) {
		var table []image.FD
		num := int32(-1)
		for _, g := range gaps[:min(len(gaps), 300)] {
			num += int32(g%16) + 1
			table = append(table, image.FD{Num: num})
		}
		const size = 5
		channel := channelFor(table)
		for done := 0; done < len(table); done += size {
			next := table[done:min(len(table), done+size)]
			busy := map[int]bool{channel: true}
			for _, fd := range table[:done] {
				busy[int(fd.Num)] = true
			}
			at := lowestFree(table[:done], channel, len(next))
			for _, n := range at {
				busy[n] = true
			}
			for i, fd := range slices.Backward(next) {
				if at[i] > int(fd.Num) || at[i] != int(fd.Num) && busy[int(fd.Num)] {
					t.Fatalf("%v: descriptor %d arrives at %d", table, fd.Num, at[i])
				}
				delete(busy, at[i])
				busy[int(fd.Num)] = true
			}
		}
	})
}
