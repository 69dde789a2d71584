package restore

import (
	"errors"
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"golang.org/x/sys/unix"
)

// Files that were deleted and are mapped or executed are made anew, once each, as deleted files
// where they were. Mappings and open files of the tree share them.

// goneError is an error about such a file, with the first process that has it.
func goneError(m *image.Manifest, ref image.ObjRef, what string, err error) error {
	pid, _ := needs(m, func(v *image.VMA) bool { return v.Segment == ref })
	for i := range m.Tasks {
		if t := &m.Tasks[i]; pid == 0 && t.MM != 0 && m.MMs[t.MM-1].ExeSegment == ref {
			pid = t.PID
		}
	}
	return &FileError{PID: int(pid), FD: NoFD, Path: m.Segments[ref-1].Path, What: "it was deleted and mapped or executed; " + what, Remedy: openRemedy(err), Err: err}
}

// checkGone asks whether the deleted files can be made where they were.
func checkGone(m *image.Manifest) error {
	for i := range m.Segments {
		seg := &m.Segments[i]
		if seg.Path == "" {
			continue
		}
		if err := kind.CheckGone(seg.Path); err != nil {
			return goneError(m, image.ObjRef(i+1), "it has to be made anew", err)
		}
	}
	return nil
}

// makeGone makes a deleted file without its content.
func (j *job) makeGone(ref image.ObjRef) (int, error) {
	seg := &j.m.Segments[ref-1]
	tmp := false
	for i := range j.m.Files {
		tmp = tmp || j.m.Files[i].Segment == ref && kind.TmpFile(&j.m.Files[i])
	}
	fd, err := kind.MakeGone(seg.Path, tmp, j.env)
	if err != nil {
		return -1, err
	}
	err = unix.Ftruncate(fd, seg.Size)
	for _, x := range seg.XAttrs {
		if err == nil {
			err = unix.Fsetxattr(fd, x.Name, x.Value, 0)
		}
	}
	if err == nil {
		err = unix.Fchown(fd, int(seg.UID), int(seg.GID))
	}
	if err != nil {
		closeFD(fd)
		return -1, fmt.Errorf("size, owner and attributes: %w", err)
	}
	return fd, nil
}

// settleGone gives the deleted files, when all files are open, the modes and times that they must
// not have before. Those that nobody maps for writing are kept open for reading only: a file that
// somebody has open for writing cannot be executed.
func (j *job) settleGone() error {
	for i := range j.m.Segments {
		seg, ref := &j.m.Segments[i], image.ObjRef(i+1)
		if seg.Path == "" {
			continue
		}
		fd := j.segs[i]
		times := [2]unix.Timespec{unix.NsecToTimespec(seg.ATime), unix.NsecToTimespec(seg.MTime)}
		err := errors.Join(unix.Fchmod(fd, seg.Mode&0o7777), unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH))
		if err != nil {
			return goneError(j.m, ref, "set its mode and times", err)
		}
		shown, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err == nil && shown != seg.Path+" (deleted)" {
			j.warn("deleted file %s is mapped or executed, and shows as %q now", seg.Path, shown)
		}
		if j.mapsWritable(ref) {
			continue
		}
		if _, ok := j.readable[ref]; !ok {
			if j.readable[ref], err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0); err != nil {
				delete(j.readable, ref)
				return goneError(j.m, ref, "open it for reading", err)
			}
		}
		closeFD(fd)
		j.segs[i] = j.readable[ref]
		delete(j.readable, ref)
	}
	return nil
}

// mapsWritable reports whether a process maps the segment and can write to it.
func (j *job) mapsWritable(ref image.ObjRef) bool {
	_, v := needs(j.m, func(v *image.VMA) bool { return v.Kind == image.VMASegment && v.Segment == ref && writes(v) })
	return v != nil
}

// executable is our descriptor of the executable of an address space.
func (j *job) executable(mm *image.MM) int {
	if mm.ExeSegment != 0 {
		return j.segs[mm.ExeSegment-1]
	}
	return j.mapped[mapKey{mm.Exe.Path, false}]
}

// otherNames says which files are mapped or executed under other names than before.
func (j *job) otherNames(pid int32, mm *image.MM) {
	if mm.ExeWas != "" {
		j.warn("pid %d: its executable was deleted as %s and is %s now", pid, mm.ExeWas, mm.Exe.Path)
	}
	for k := range mm.VMAs {
		if v := &mm.VMAs[k]; v.Was != "" {
			j.warn("pid %d: the file that it maps at %#x was deleted as %s and is %s now", pid, v.Start, v.Was, v.File.Path)
		}
	}
}
