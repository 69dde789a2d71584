package image

import (
	"fmt"
	"strings"
)

const (
	maxAddr     = 1 << 56 // above all user addresses of x86-64 with five levels of page tables
	maxFileSize = 1 << 62
	maxBlob     = 1 << 50
	maxAuxv     = 4096
	maxVMFlags  = 64
	protMask    = 7 // PROT_READ|PROT_WRITE|PROT_EXEC

	mapShared    = 1 // MAP_SHARED and MAP_PRIVATE of mmap(2)
	mapPrivate   = 2
	mapDroppable = 8 // MAP_DROPPABLE, Linux 6.11
	mapType      = 15

	sIFMT  = 0o170000 // of st_mode
	sIFREG = 0o100000

	minHuge = 14 // of the sizes that MAP_HUGE_SHIFT of mmap(2) can name
	maxHuge = 34

	maxXAttrs    = 1 << 12 // XATTR_LIST_MAX is 64 KiB, and a name has more than 16 bytes of it
	maxXAttrName = 255     // XATTR_NAME_MAX
	maxXAttr     = 1 << 16 // XATTR_SIZE_MAX

	sigKill = 9
	sigStop = 19
)

// validMMs checks every address space.
func (m *Manifest) validMMs() error {
	for i := range m.MMs {
		if err := m.MMs[i].validate(m); err != nil {
			return at(err, "mms[%d]", i)
		}
	}
	return nil
}

// validate checks one address space.
func (mm *MM) validate(m *Manifest) error {
	err := first(
		within("auxv", int64(len(mm.Auxv)), 0, maxAuxv),
		mm.Exe.validate("exe"),
		mm.exeSegment(m),
		path("exe_was", mm.ExeWas),
	)
	if err != nil {
		return err
	}
	if len(mm.Auxv)%16 != 0 {
		return bad("auxv", "has %d bytes, not whole pairs of 16", len(mm.Auxv))
	}
	if len(mm.Leftovers) > maxLeftovers {
		return bad("leftovers", "has %d of them", len(mm.Leftovers))
	}
	for i, l := range mm.Leftovers {
		if n := uint64(len(l.Bytes)); n == 0 || uint64(l.Off)+n > uint64(m.Host.VDSOLen) {
			return at(bad("off", "%d bytes at %d of a vdso of %d", n, l.Off, m.Host.VDSOLen), "leftovers[%d]", i)
		}
	}
	var end uint64
	for i := range mm.VMAs {
		v := &mm.VMAs[i]
		if err := v.validate(end, m); err != nil {
			return at(err, "vmas[%d]", i)
		}
		end = v.End
	}
	return nil
}

// exeSegment checks that a deleted executable is a deleted file of the image.
func (mm *MM) exeSegment(m *Manifest) error {
	if err := optional("exe_segment", mm.ExeSegment, len(m.Segments)); err != nil || mm.ExeSegment == 0 {
		return err
	}
	if m.Segments[mm.ExeSegment-1].Path == "" {
		return bad("exe_segment", "number %d is no deleted file", mm.ExeSegment)
	}
	return nil
}

// validate checks one VMA; after is where the one before it ends.
func (v *VMA) validate(after uint64, m *Manifest) error {
	switch {
	case v.Start%PageSize != 0 || v.End%PageSize != 0:
		return bad("start", "%#x-%#x are not whole pages", v.Start, v.End)
	case v.End <= v.Start || v.End > maxAddr:
		return bad("end", "is %#x in a VMA that starts at %#x", v.End, v.Start)
	case v.Start < after:
		return bad("start", "%#x lies in the VMA before it, which ends at %#x", v.Start, after)
	case v.Prot&^protMask != 0:
		return bad("prot", "is %#x", v.Prot)
	case v.Offset%PageSize != 0:
		return bad("offset", "%#x is not a multiple of the page size", v.Offset)
	case len(v.VMFlags) > maxVMFlags:
		return bad("vmflags", "has %d of them", len(v.VMFlags))
	}
	for i, f := range v.VMFlags {
		if len(f) != 2 {
			return at(bad("", "%q is no flag of smaps", f), "vmflags[%d]", i)
		}
	}
	return first(
		text("name", v.Name, maxPath),
		path("was", v.Was),
		v.File.validate("file"),
		v.backing(m),
		validExtents("extents", v.Extents, v.Start, v.End),
		v.validGuards(),
		v.MemPolicy.validate("mem_policy"),
	)
}

// validGuards checks that guard regions are whole pages of the VMA, in order, and that the
// image holds none of these pages.
func (v *VMA) validGuards() error {
	if len(v.Guards) == 0 {
		return nil
	}
	if v.Kind == VMAVDSO || v.Kind == VMAVvar || v.Kind == VMARing || v.Kind == VMAAIO {
		return bad("guards", "there are %d in a VMA of kind %d", len(v.Guards), v.Kind)
	}
	if err := validExtents("guards", v.Guards, v.Start, v.End); err != nil {
		return err
	}
	rest := v.Extents
	for i, g := range v.Guards {
		for len(rest) > 0 && rest[0].Start+rest[0].Len <= g.Start {
			rest = rest[1:]
		}
		if len(rest) > 0 && rest[0].Start < g.Start+g.Len {
			return at(bad("", "%#x bytes at %#x lie in the extent at %#x", g.Len, g.Start, rest[0].Start), "guards[%d]", i)
		}
	}
	return nil
}

// backing checks that a VMA has what its kind needs and nothing else.
func (v *VMA) backing(m *Manifest) error {
	if v.Kind < VMAAnon || v.Kind > VMAAIO {
		return bad("kind", "there is no kind %d", v.Kind)
	}
	if err := v.validAIO(); err != nil {
		return err
	}
	file := v.Kind == VMAFilePrivate || v.Kind == VMAFileShared
	if file != (v.File.Path != "") {
		return bad("file", "is %q in a VMA of kind %d", v.File.Path, v.Kind)
	}
	if v.Kind == VMASegment {
		if err := ref("segment", v.Segment, len(m.Segments)); err != nil {
			return err
		}
		if err := v.attachment(&m.Segments[v.Segment-1]); err != nil {
			return err
		}
		if shift := m.Segments[v.Segment-1].Huge; shift <= maxHuge && (v.Start|v.End|v.Offset)&(1<<shift-1) != 0 {
			return bad("start", "%#x-%#x at offset %#x of segment %d are not whole huge pages of it, of 2^%d bytes", v.Start, v.End, v.Offset, v.Segment, shift)
		}
	} else if v.Segment != 0 {
		return bad("segment", "is %d in a VMA of kind %d", v.Segment, v.Kind)
	}
	if (file || v.Kind == VMASegment || v.Kind == VMARing) && v.Offset > maxFileSize {
		return bad("offset", "is %#x", v.Offset)
	}
	shared := v.Flags&mapType == mapShared
	switch kind := v.Kind; {
	case kind == VMAVDSO || kind == VMAVvar: // the kernel made them, no mmap(2)
	case v.Flags&mapType == mapDroppable && kind == VMAAnon:
	case !shared && v.Flags&mapType != mapPrivate:
		return bad("flags", "%#x are neither shared nor private", v.Flags)
	case shared && (kind == VMAAnon || kind == VMAFilePrivate), !shared && (kind == VMAFileShared || kind == VMARing || kind == VMAAIO):
		return bad("flags", "are %#x in a VMA of kind %d", v.Flags, kind)
	}
	private := v.Kind == VMAAnon || v.Kind == VMAFilePrivate || v.Kind == VMASegment && !shared
	if len(v.Extents) > 0 && !private {
		return bad("extents", "there are %d, but the VMA has no pages of its own", len(v.Extents))
	}
	return nil
}

// validExtents checks that extents are whole pages between low and high, in order.
func validExtents(field string, all []Extent, low, high uint64) error {
	for i, e := range all {
		switch {
		case e.Start%PageSize != 0 || e.Len%PageSize != 0 || e.Len == 0:
			return at(bad("", "%#x bytes at %#x are not whole pages", e.Len, e.Start), "%s[%d]", field, i)
		case e.Start < low || e.Start > high || e.Len > high-e.Start:
			return at(bad("", "%#x bytes at %#x do not lie between %#x and %#x", e.Len, e.Start, low, high), "%s[%d]", field, i)
		}
		low = e.Start + e.Len
	}
	return nil
}

// validate checks the identity of a file.
func (f *MappedFile) validate(field string) error {
	return at2(field, path("path", f.Path), within("size", f.Size, 0, 1<<63-1))
}

// at2 is the first error with the field before it.
func at2(field string, errs ...error) error {
	if err := first(errs...); err != nil {
		return at(err, "%s", field)
	}
	return nil
}

// validFiles checks open file descriptions, segments and blobs.
func (m *Manifest) validFiles() error {
	for i := range m.Files {
		if err := m.Files[i].validate(m); err != nil {
			return at(err, "files[%d]", i)
		}
	}
	if err := m.validSegments(); err != nil {
		return err
	}
	for i, b := range m.Blobs {
		if err := within("len", b.Len, 0, maxBlob); err != nil {
			return at(err, "blobs[%d]", i)
		}
	}
	return nil
}

// validate checks one open file description; the record is its kind's to check.
func (f *File) validate(m *Manifest) error {
	if f.Kind == "" {
		return bad("kind", "is missing")
	}
	return first(
		text("kind", f.Kind, 256),
		path("path", f.Path),
		within("pos", f.Pos, 0, 1<<63-1),
		optional("blob", f.Blob, len(m.Blobs)),
		optional("segment", f.Segment, len(m.Segments)),
		within("owner.type", int64(f.Owner.Type), 0, 2),
		within("owner.pid", int64(f.Owner.PID), 0, maxPID),
		within("owner.signal", int64(f.Owner.Signal), 0, maxSignal),
		f.ownerBy(),
		f.locks(),
	)
}

// validTables checks the smaller tables that tasks share.
func (m *Manifest) validTables() error {
	for i := range m.FDTables {
		if err := m.FDTables[i].validate(len(m.Files)); err != nil {
			return at(err, "fd_tables[%d]", i)
		}
	}
	for i := range m.Sighands {
		if err := m.Sighands[i].validate(); err != nil {
			return at(err, "sighands[%d]", i)
		}
	}
	for i := range m.FSs {
		if err := m.FSs[i].validate(); err != nil {
			return at(err, "fss[%d]", i)
		}
	}
	return nil
}

// validate checks a table of descriptors.
func (t *FDTable) validate(files int) error {
	last := int32(-1)
	for i, fd := range t.FDs {
		err := first(
			within("num", int64(fd.Num), int64(last)+1, maxFD),
			ref("file", fd.File, files),
		)
		if err != nil {
			return at(err, "fds[%d]", i)
		}
		last = fd.Num
	}
	return nil
}

// validate checks a table of signal actions.
func (s *Sighand) validate() error {
	last := int32(0)
	for i, a := range s.Actions {
		err := within("signal", int64(a.Signal), int64(last)+1, maxSignal)
		if err == nil && (a.Signal == sigKill || a.Signal == sigStop) {
			err = bad("signal", "%d cannot have an action", a.Signal)
		}
		if err != nil {
			return at(err, "actions[%d]", i)
		}
		last = a.Signal
	}
	return nil
}

// validate checks working directory and root.
func (f *FS) validate() error {
	for _, p := range [...]struct{ field, path string }{{"cwd", f.Cwd}, {"root", f.Root}} {
		if !strings.HasPrefix(p.path, "/") {
			return bad(p.field, "%q is not an absolute path", p.path)
		}
		if err := path(p.field, p.path); err != nil {
			return err
		}
	}
	if c := &f.CwdFile; c.Kind != "" {
		switch {
		case c.Path != f.Cwd:
			return bad("cwd_file.path", "is %q, the working directory %q", c.Path, f.Cwd)
		case c.Blob != 0 || c.Segment != 0:
			return bad("cwd_file", "a directory has neither blob nor segment")
		}
	}
	return within("umask", int64(f.Umask), 0, 0o777)
}

// validPolicies bounds what a restore prints of the policies; which there are it knows itself.
func (m *Manifest) validPolicies() error {
	const most, long = 100, 64
	if len(m.Policies) > most {
		return bad("policies", "there are %d of them, more than %d", len(m.Policies), most)
	}
	for i, p := range m.Policies {
		if len(p) > long {
			return bad(fmt.Sprintf("policies[%d]", i), "has %d bytes, more than %d", len(p), long)
		}
	}
	return nil
}

// validLost checks that an image only lists losses: a refused checkpoint leaves no image.
func (m *Manifest) validLost() error {
	for i, f := range m.Lost {
		if f.Severity != Lose {
			return bad(fmt.Sprintf("lost[%d].severity", i), "is %d, not %d", f.Severity, Lose)
		}
	}
	return nil
}
