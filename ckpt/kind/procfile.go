package kind

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// procFile is a file or directory of procfs about one process or thread, such as /proc/PID/maps. Of
// one in the tree it is opened again when that is there; of one that was reaped, of a process
// that is made for that and ends, and whose id shows in the link if the old one is taken.
//
// The text of such a file is made when it is read. What was made and not read yet is not kept: a
// read from the middle goes on at the same position of a new text, as it does after a seek.
type procFile struct{}

type procFileRec struct {
	PID  int32  `cbor:"1,keyasint"`
	TID  int32  `cbor:"2,keyasint,omitempty"` // below task/
	Name string `cbor:"3,keyasint,omitempty"` // below that: "" is the directory itself
	Mode uint32 `cbor:"4,keyasint"`           // st_mode
	Dead bool   `cbor:"5,keyasint,omitempty"` // it was reaped
	// Dir is set for the directory task itself.
	Dir bool `cbor:"6,keyasint,omitempty"`
}

// parseProc takes a path such as /proc/7/task/8/stat apart.
func parseProc(link string) (r procFileRec, ok bool) {
	rest, ok := strings.CutPrefix(link, "/proc/")
	if !ok || rest == "" || path.Clean(link) != link {
		return r, false
	}
	number := func() (int32, bool) {
		var word string
		word, rest, _ = strings.Cut(rest, "/")
		n, err := strconv.ParseUint(word, 10, 31)
		return int32(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == word
	}
	if r.PID, ok = number(); !ok {
		return r, false
	}
	switch {
	case rest == "task":
		r.Dir = true
		return r, true
	case strings.HasPrefix(rest, "task/"):
		rest = rest[len("task/"):]
		if r.TID, ok = number(); !ok {
			return r, false
		}
	}
	r.Name = rest
	return r, true
}

// path is where the file is, with the ids of pid and tid for its own.
func (r *procFileRec) path(pid, tid int) string {
	p := "/proc/" + strconv.Itoa(pid)
	if r.Dir {
		return p + "/task"
	}
	if r.TID != 0 {
		p += "/task/" + strconv.Itoa(tid)
	}
	return path.Join(p, r.Name)
}

// key names the process of a dead one's files.
func (r *procFileRec) key() string { return fmt.Sprintf("proc %d", r.PID) }

// procWritable are the files that may be open for writing: what is written goes to the process,
// and who opened the file does not matter.
var procWritable = map[string]bool{"mem": true, "comm": true, "oom_score_adj": true, "oom_adj": true, "coredump_filter": true,
	"clear_refs": true, "timerslack_ns": true, "autogroup": true, "sched": true}

// refusal says why a file of that name is not opened again, or "".
func (r *procFileRec) refusal(flags uint32) string {
	first, rest, _ := strings.Cut(r.Name, "/")
	switch {
	case rest != "" && (first == "fd" || first == "fdinfo" || first == "map_files"):
		return "it tells of a descriptor or mapping of a process, which is not there yet when it is opened"
	case rest != "" && first != "net" && first != "attr" && first != "ns":
		return "files of this name in /proc are not known to this version"
	case writable(flags) && !procWritable[r.Name]:
		return "it is open for writing, which may need the rights of who opened it"
	}
	return ""
}

func (procFile) Name() string { return "procfile" }

func (procFile) Match(f *Found) bool { return isProcFile(f) }

// isProcFile is for the other kinds that are found by a path. It asks the filesystem last.
func isProcFile(f *Found) bool {
	_, ok := parseProc(strings.TrimSuffix(f.Link, deletedMark))
	return ok && fsType(f) == unix.PROC_SUPER_MAGIC
}

// describeProc finds out what f is of.
func describeProc(f *Found, s *Scene) (r procFileRec, err error) {
	r, ok := parseProc(strings.TrimSuffix(f.Link, deletedMark))
	if !ok {
		return r, fmt.Errorf("%s is not a path of a process in /proc", f.Link)
	}
	r.Mode = f.Stat.Mode
	if r.Mode == 0 { // the kernel has no stat for it any more
		r.Mode = unix.S_IFDIR
	}
	r.Dead = !leadsTo(f, f.Link)
	if why := r.refusal(f.Flags); why != "" {
		return r, fmt.Errorf("%s", why)
	}
	var root unix.Stat_t
	if err := unix.Stat("/proc", &root); err != nil || f.Stat.Dev != 0 && root.Dev != f.Stat.Dev {
		return r, fmt.Errorf("it lies in a procfs that is not the one on /proc")
	}
	if !r.Dead {
		for _, id := range []int32{r.PID, r.TID} {
			if id != 0 && !s.member(int(id)) {
				return r, fmt.Errorf("it is about %s, which is outside the tree and may be gone or another one when it is restored", processName(int(id)))
			}
		}
		return r, staleMemory(f, &r)
	}
	switch {
	case strings.HasPrefix(r.Name, "net/") && s.member(int(r.PID)):
		return r, fmt.Errorf("it shows another network namespace than its process has")
	case f.Info.Pos != 0 && r.Mode&unix.S_IFMT == unix.S_IFREG && r.Name != "mem" && r.Name != "environ" && r.Name != "pagemap":
		return r, fmt.Errorf("it is being read at position %d and process %d has ended: the text that is left of it cannot be looked at", f.Info.Pos, r.PID)
	case r.Name == "auxv":
		return r, fmt.Errorf("it shows what is left of process %d, which has ended", r.PID)
	}
	return r, nil
}

func (procFile) Check(f *Found, s *Scene) []image.Finding {
	all := held(f, s)
	r, err := describeProc(f, s)
	if err != nil {
		return append(all, f.refuse(err.Error(), "close it before the checkpoint, and open it for each reading"))
	}
	switch r.Name {
	case "mounts", "mountinfo", "mountstats":
		all = append(all, f.lose("poll(2) on it tells of changes of mounts, and will not tell of those before the restored processes run", "read it again after a restore"))
	}
	return all
}

func (procFile) Dump(f *Found, s *Scene, rec *image.File) error {
	r, err := describeProc(f, s)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Link, err)
	}
	return encodeRec(rec, &r)
}

// decodeProc reads the record and checks it: it may lead to nothing but such a file of
// a process of the image.
func decodeProc(rec *image.File, m *image.Manifest) (*procFileRec, error) {
	var r procFileRec
	if err := decodeRec(rec, &r); err != nil {
		return nil, err
	}
	again, ok := parseProc(r.path(int(r.PID), int(r.TID)))
	again.Mode, again.Dead = r.Mode, r.Dead
	if !ok || again != r || r.PID <= 0 || r.TID < 0 {
		return nil, fmt.Errorf("file of /proc: the image has no sensible path: pid %d, thread %d, %q", r.PID, r.TID, r.Name)
	}
	if why := r.refusal(rec.Flags); why != "" {
		return nil, fmt.Errorf("%s: %s", rec.Path, why)
	}
	if !r.Dead && (!holds(m, int(r.PID)) || r.TID != 0 && !holds(m, int(r.TID))) {
		return nil, fmt.Errorf("%s: that process is not in the image", rec.Path)
	}
	return &r, nil
}

// CheckOpen is Checker.CheckOpen.
func (procFile) CheckOpen(rec *image.File, e *Env) (string, error) {
	_, err := decodeProc(rec, e.Manifest)
	return "", err
}

// Dead is Later.Dead.
func (procFile) Dead(rec *image.File) ([]Dead, error) {
	var r procFileRec
	if err := decodeRec(rec, &r); err != nil || !r.Dead {
		return nil, err
	}
	return []Dead{{Key: r.key(), PID: int(r.PID)}}, nil
}

func (procFile) Open(rec *image.File, e *Env) (int, error) {
	r, err := decodeProc(rec, e.Manifest)
	if err != nil {
		return -1, err
	}
	pid, tid := int(r.PID), int(r.TID)
	if r.Dead {
		pid = e.Dead[r.key()]
		tid = pid
	}
	at := r.path(pid, tid)
	how := unix.OpenHow{Flags: uint64(openFlags(rec.Flags)), Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, at, &how)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", at, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Mode^r.Mode)&unix.S_IFMT != 0 {
		err = fmt.Errorf("it is %s, but was %s", typeName(st.Mode), typeName(r.Mode))
	}
	if err != nil {
		unix.Close(fd) // never used
		return -1, fmt.Errorf("%s: %w", at, err)
	}
	if fd, err = finished(fd, rec.Flags, 0, rec.Pos); err != nil {
		return -1, fmt.Errorf("%s: %w", at, err)
	}
	if rec.Pos > 0 && readable(rec.Flags) && st.Mode&unix.S_IFMT == unix.S_IFREG {
		forgetText(fd, rec.Pos)
	}
	return fd, nil
}

// forgetText makes the kernel forget the text that it made for a position when that was set: it shows
// a process that is half restored. A read elsewhere does that, and leaves the position alone.
func forgetText(fd int, pos int64) {
	b := make([]byte, 1)
	if pos == 1 {
		b = make([]byte, 2)
	}
	_, _ = unix.Pread(fd, b, 0) // if it fails there was no text
}
