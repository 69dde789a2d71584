package ckpt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// refusedFlags are VmFlags (Documentation/filesystems/proc.rst) of mappings that cannot be
// made anew, with the reason and the remedy.
var refusedFlags = map[string][2]string{
	"um": {"userfaultfd mapping", "its page faults are handled by user space, and a userfaultfd cannot be checkpointed"},
	"uw": {"userfaultfd mapping", "its writes are tracked by user space, and a userfaultfd cannot be checkpointed"},
	"ui": {"userfaultfd mapping", "its minor faults are handled by user space, and a userfaultfd cannot be checkpointed"},
	"io": {"device memory", "it is a window to a device, whose state cannot be read"},
	"pf": {"device memory", "its pages belong to a driver"},
	"sf": {"DAX mapping", "MAP_SYNC mappings cannot be made anew yet"},
	"ss": {"shadow stack", "shadow stacks cannot be made anew yet"},
	"sl": {"sealed mapping", "mseal(2) cannot be undone on the way back"},
}

// area is a process's mapping as a checkpoint sees it, before it becomes an image.VMA.
type area struct {
	procfs.Smap
	kind image.VMAKind
	file image.MappedFile // VMAFile kinds
	was  string           // VMAFile kinds: the name that maps shows, if file has another one now
	gone *whereabouts     // VMASegment: a file that has no name left
}

// special reports whether the kernel made the mapping and makes it again with the vdso.
func special(path string) (image.VMAKind, bool) {
	switch path {
	case "[vdso]":
		return image.VMAVDSO, true
	case "[vvar]", "[vvar_vclock]":
		return image.VMAVvar, true
	}
	return 0, false
}

// classify tells where the pages of a mapping come from.
func classify(m *procfs.Mapping) image.VMAKind {
	if k, ok := special(m.Path); ok {
		return k
	}
	switch {
	case m.Path == kind.RingLink:
		return image.VMARing
	case m.Path == aioPath && m.Shared:
		return image.VMAAIO
	case isSegment(m):
		return image.VMASegment
	case m.Ino == 0 && !m.Shared, isHuge(m) && !m.Shared:
		return image.VMAAnon
	case m.Shared:
		return image.VMAFileShared
	}
	return image.VMAFilePrivate
}

// isSegment reports whether the mapping is of shared memory without a name: the kernel
// shows MAP_SHARED|MAP_ANONYMOUS as /dev/zero, or /anon_hugepage with MAP_HUGETLB, and memfds as
// /memfd:NAME, and attached memory of System V as /SYSV and its key, all of them deleted.
// A private mapping of /dev/zero is plain anonymous memory with a path.
func isSegment(m *procfs.Mapping) bool {
	if _, ok := sysvID(m); ok {
		return true
	}
	return m.Ino != 0 && m.Deleted && (strings.HasPrefix(m.Path, "/memfd:") || m.Shared && (m.Path == "/dev/zero" || isHuge(m)))
}

// isHuge reports whether the mapping is of hugetlb pages without a file (MAP_HUGETLB): the
// kernel shows a file of its own making.
func isHuge(m *procfs.Mapping) bool { return m.Deleted && m.Path == "/anon_hugepage" }

// areas turns the smaps of a process into areas, and lists what of them cannot be kept.
// [vsyscall] is left out: it is the same in every process.
func areas(pid int, smaps []procfs.Smap) ([]area, []image.Finding) {
	var out []area
	var bad []image.Finding
	var sc *scanner
	defer func() { sc.close() }()
	for i := range smaps {
		s := &smaps[i]
		if s.Path == "[vsyscall]" {
			continue
		}
		a := area{Smap: *s, kind: classify(&s.Mapping)}
		if a.HasFlag("uw") {
			if sc == nil {
				sc, _ = newScanner(pid) // without it the flag is refused
			}
			a.dropTracking(sc)
		}
		if f, refused := checkArea(pid, &a); refused {
			bad = append(bad, f)
			continue
		}
		out = append(out, a)
	}
	return out, bad
}

// dropTracking takes away the flag that writes to the area are tracked, if that is done asynchronously: then it is the affair of whoever
// looks on, such as a Tracker of ours, and no state of the process. (One that does so itself has a userfaultfd open.)
func (a *area) dropTracking(sc *scanner) {
	if sc == nil {
		return
	}
	if is, err := sc.isTracked(a.Start); is && err == nil {
		a.Flags = untrackedFlags(a.Flags)
	}
}

// untrackedFlags are VmFlags without the one that says that writes are tracked.
func untrackedFlags(flags []string) []string {
	return slices.DeleteFunc(slices.Clone(flags), func(f string) bool { return f == "uw" })
}

// checkArea identifies the file behind an area and finds out whether it can be mapped again.
func checkArea(pid int, a *area) (image.Finding, bool) {
	refuse := func(kind, what, remedy string) (image.Finding, bool) {
		return image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Addr: a.Start, Kind: kind, What: what, Remedy: remedy}, true
	}
	if a.kind == image.VMAVDSO || a.kind == image.VMAVvar || a.kind == image.VMARing || a.kind == image.VMAAIO {
		return image.Finding{}, false
	}
	for _, f := range a.Flags {
		if r, ok := refusedFlags[f]; ok {
			return refuse(r[0], r[1], "let the program unmap it before the checkpoint")
		}
	}
	if a.ProtectionKey != 0 {
		return refuse("protection key", fmt.Sprintf("the memory has pkey %d, and pkeys cannot be made anew yet", a.ProtectionKey), "let the program free it with pkey_mprotect(2)")
	}
	switch {
	case strings.HasPrefix(a.Path, "anon_inode:"):
		return refuse(a.Path, "mappings of this kind cannot be made anew", "let the program unmap it")
	case a.Path == "/secretmem":
		return refuse("memfd_secret", "the kernel lets nobody read secret memory", "let the program unmap it")
	case a.Path == "[uprobes]":
		return refuse("uprobes", "the process is being probed", "remove the probes")
	}
	if a.kind == image.VMAFilePrivate || a.kind == image.VMAFileShared {
		return identify(pid, a)
	}
	return image.Finding{}, false
}

// identify records the file behind an area. The path must lead to the very file that is
// mapped, or a restore would map another one; one that no path leads to becomes a segment.
func identify(pid int, a *area) (image.Finding, bool) {
	refuse := func(what, remedy string) (image.Finding, bool) {
		return image.Finding{Severity: image.Refuse, PID: int32(pid), FD: image.NoFD, Addr: a.Start, Kind: "mapped file " + a.Path, What: what, Remedy: remedy}, true
	}
	shown := a.Path
	if a.Deleted {
		shown += deletedMark
	}
	w, no := findMapped(mapFile(pid, &a.Mapping), shown)
	if no != nil {
		return refuse(no.what, no.remedy)
	}
	if w.gone {
		a.kind, a.gone = image.VMASegment, &w
		return image.Finding{}, false
	}
	if t := w.st.Mode & unix.S_IFMT; t != unix.S_IFREG && !(t == unix.S_IFCHR && a.Path == "/dev/zero") {
		return refuse("it is a device, and what a driver maps cannot be made anew", "let the program unmap it")
	}
	a.file, a.was = mappedFile(w.path, &w.st), w.was
	return image.Finding{}, false
}

// mapFile is the link that leads to the file behind a mapping.
func mapFile(pid int, m *procfs.Mapping) string {
	return fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End)
}

// inode is how the segment behind an area is told from others.
func (a *area) inode() inode {
	if a.gone != nil {
		return keyOf(&a.gone.st)
	}
	return inodeOf(&a.Mapping)
}

// inodeOf tells what is mapped from others.
func inodeOf(m *procfs.Mapping) inode {
	if id, ok := sysvID(m); ok {
		return inode{sysvDev, uint64(id)}
	}
	return inode{m.Dev, m.Ino}
}

// mayWrite reports whether the process can write to what is behind the area, also if little is
// known of it.
func (a *area) mayWrite() bool {
	return a.Shared && (a.Write || a.HasFlag("mw") || len(a.Flags) == 0)
}

// mappedFile is the identity of a file from its path and stat.
func mappedFile(path string, st *unix.Stat_t) image.MappedFile {
	return image.MappedFile{Path: path, Dev: st.Dev, Ino: st.Ino, Size: st.Size, MTime: st.Mtim.Nano(), Mode: st.Mode}
}

// frozenOnly reports whether a copy-on-write child does not hold the area's pages as the
// target sees them, so that they have to be copied while it is still.
func (a *area) frozenOnly() bool {
	return a.HasFlag("dc") || a.HasFlag("wf") || a.HasFlag("ht") || a.kind == image.VMASegment && a.Shared
}

// hasPages reports whether an image holds pages of the area itself.
func (a *area) hasPages() bool {
	switch a.kind {
	case image.VMAAnon, image.VMAFilePrivate:
		return true
	case image.VMASegment:
		return !a.Shared
	}
	return false
}

// vma is the area as the image describes it, without its pages.
func (a *area) vma() image.VMA {
	v := image.VMA{Start: a.Start, End: a.End, Kind: a.kind, VMFlags: a.Flags, Offset: a.Offset, File: a.file, Was: a.was, THP: a.AnonHuge > 0}
	for _, p := range []struct {
		on  bool
		bit uint32
	}{{a.Read, unix.PROT_READ}, {a.Write, unix.PROT_WRITE}, {a.Exec, unix.PROT_EXEC}} {
		if p.on {
			v.Prot |= p.bit
		}
	}
	switch {
	case a.Shared:
		v.Flags = unix.MAP_SHARED
	case a.HasFlag("dp"):
		v.Flags = unix.MAP_DROPPABLE
	default:
		v.Flags = unix.MAP_PRIVATE
	}
	if a.HasFlag("gd") {
		v.Flags |= unix.MAP_GROWSDOWN
	}
	if a.HasFlag("nr") {
		v.Flags |= unix.MAP_NORESERVE
	}
	if a.HasFlag("ht") {
		v.Flags |= unix.MAP_HUGETLB | hugeShift(a.KernelPageSize)<<unix.MAP_HUGE_SHIFT
	}
	if a.kind == image.VMAAnon {
		v.Offset = 0
	}
	if strings.HasPrefix(a.Path, "[") {
		v.Name = a.Path
	}
	return v
}

func hugeShift(size uint64) uint32 {
	n := uint32(0)
	for size > 1 {
		size >>= 1
		n++
	}
	return n
}

// readSmaps reads and parses /proc/PID/smaps. It costs about 70 ms per GiB of 4 KiB pages
// and stops page faults of the process meanwhile, so it is not for the freeze.
func readSmaps(pid int) ([]procfs.Smap, error) {
	b, err := quickread.File(procPath(pid, "smaps"))
	if err != nil {
		return nil, err
	}
	s, err := procfs.ParseSmaps(b)
	if err != nil {
		return nil, fmt.Errorf("/proc/%d/smaps: %w", pid, err)
	}
	return s, nil
}

// readMaps reads and parses /proc/PID/maps.
func readMaps(pid int) ([]procfs.Mapping, error) {
	b, err := quickread.File(procPath(pid, "maps"))
	if err != nil {
		return nil, err
	}
	m, err := procfs.ParseMaps(b)
	if err != nil {
		return nil, fmt.Errorf("/proc/%d/maps: %w", pid, err)
	}
	return m, nil
}
