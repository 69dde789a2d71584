package restore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"github.com/ckptfs/ckptfs/ckpt/sysv"
	"github.com/ckptfs/ckptfs/ckpt/task"
	"golang.org/x/sys/unix"
)

// verify compares a process that is ready to run with the image: mappings, descriptors,
// threads and their credentials. A difference is a bug of ours or of the image, and
// better found now than by the program.
func (j *job) verify(p *proc) error {
	text, err := quickread.File(procPath(p.pid, "maps"))
	if err != nil {
		return fmt.Errorf("restore pid %d: %w", p.pid, err)
	}
	maps, err := procfs.ParseMaps(text)
	if err != nil {
		return fmt.Errorf("restore pid %d: %w", p.pid, err)
	}
	if err := compareMaps(j.m.MMs[p.task.MM-1].VMAs, maps); err != nil {
		return fmt.Errorf("restore pid %d: its memory came out wrong: %w", p.pid, err)
	}
	for _, u := range holdings(j.m, p.task) {
		if err := compareFDs(u); err != nil {
			return fmt.Errorf("restore pid %d: %w", u.id, err)
		}
		if err := j.verifyLocks(u); err != nil {
			return fmt.Errorf("restore pid %d: %w", u.id, err)
		}
	}
	for i := range p.task.Threads {
		th := &p.task.Threads[i]
		if err := task.VerifyCreds(int(th.TID), &th.Creds); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
	}
	return nil
}

// view is a mapping as it is compared: neighbours that differ in nothing else are one.
type view struct {
	Start, End uint64
	Prot       uint32
	Shared     bool
	Offset     uint64 // of a file or shared memory
	Path       string // of a file, or a name in brackets
	Backed     bool   // by a file or shared memory
}

func (v view) String() string {
	prot := []byte("---p")
	for i, bit := range []uint32{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if v.Prot&bit != 0 {
			prot[i] = "rwx"[i]
		}
	}
	if v.Shared {
		prot[3] = 's'
	}
	return fmt.Sprintf("%x-%x %s %08x %s", v.Start, v.End, prot, v.Offset, v.Path)
}

// compareMaps reports the first difference between the VMAs of an image and /proc/PID/maps.
func compareMaps(vmas []image.VMA, maps []procfs.Mapping) error {
	var want, got []view
	for i := range vmas {
		want = addView(want, viewOfVMA(&vmas[i]))
	}
	for i := range maps {
		if maps[i].Path != "[vsyscall]" {
			got = addView(got, viewOfMapping(&maps[i]))
		}
	}
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			return fmt.Errorf("%v is missing", want[i])
		case i >= len(want):
			return fmt.Errorf("%v is too much", got[i])
		case want[i] != got[i]:
			return fmt.Errorf("it is %v, should be %v", got[i], want[i])
		}
	}
	return nil
}

// addView appends a mapping or joins it with the one before it.
func addView(all []view, v view) []view {
	if n := len(all); n > 0 {
		last := &all[n-1]
		joined := v
		joined.Start, joined.Offset, joined.End = last.Start, last.Offset, last.End
		if last.End == v.Start && joined == *last && (!v.Backed || v.Offset == last.Offset+last.End-last.Start) {
			last.End = v.End
			return all
		}
	}
	return append(all, v)
}

func viewOfVMA(v *image.VMA) view {
	w := view{Start: v.Start, End: v.End, Prot: v.Prot & (unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC), Shared: v.Flags&unix.MAP_SHARED != 0, Path: v.Name}
	switch v.Kind {
	case image.VMAFilePrivate, image.VMAFileShared:
		w.Path, w.Offset, w.Backed = v.File.Path, v.Offset, true
	case image.VMARing:
		w.Path, w.Offset, w.Backed = kind.RingLink, v.Offset, true
	case image.VMASegment, image.VMAAIO:
		w.Path, w.Offset, w.Backed = "", v.Offset, true
	}
	return w
}

func viewOfMapping(m *procfs.Mapping) view {
	w := view{Start: m.Start, End: m.End, Shared: m.Shared, Path: m.Path}
	for i, on := range []bool{m.Read, m.Write, m.Exec} {
		if on {
			w.Prot |= []uint32{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC}[i]
		}
	}
	if m.Deleted && m.Path == "/anon_hugepage" && !m.Shared { // MAP_HUGETLB: the kernel makes a file for each mapping
		w.Path = ""
		return w
	}
	if _, _, ok := sysv.Mapped(m.Path, m.Ino, m.Shared, m.Deleted); ok || m.Ino != 0 { // a segment of System V may have the number 0
		w.Offset, w.Backed = m.Offset, true
		if m.Deleted || strings.HasPrefix(m.Path, "[") { // shared memory: its name is not that of a file
			w.Path = ""
		}
	}
	return w
}

// manyFDs is for how many descriptors it is worth to prepare for reading the kernel's memory, which takes some ms.
const manyFDs = 1000

// numbers lists what descriptors there are.
func (u *holding) numbers() ([]int, error) {
	if len(u.fds) >= manyFDs && u.thread == 0 {
		if m, err := kmem.Open(); err == nil {
			if all, err := m.Numbers(u.id); err == nil {
				return all, nil
			}
		}
	}
	return quickread.Numbers(procPath(u.id, "fd"))
}

// compareFDs compares the numbers of descriptors with the table.
func compareFDs(u holding) error {
	got, err := u.numbers()
	if err != nil {
		return err
	}
	var want []int
	for _, fd := range u.fds {
		want = append(want, int(fd.Num))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("its descriptors came out as %v, should be %v", got, want)
	}
	return nil
}
