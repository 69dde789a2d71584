package image

import "strings"

const maxMode = 0o777 // permissions

// validSegments checks shared memory.
func (m *Manifest) validSegments() error {
	ids, keys := map[int32]bool{}, map[int32]bool{}
	for i := range m.Segments {
		s := &m.Segments[i]
		err := s.validate()
		if v := s.SysV; err == nil && v != nil {
			switch {
			case ids[v.ID]:
				err = bad("sysv.id", "%d is there twice", v.ID)
			case v.Key != 0 && keys[v.Key]:
				err = bad("sysv.key", "%#x is there twice", uint32(v.Key))
			}
			ids[v.ID], keys[v.Key] = true, true
		}
		if err != nil {
			return at(err, "segments[%d]", i)
		}
	}
	return nil
}

// validate checks shared memory.
func (s *Segment) validate() error {
	err := first(
		text("name", s.Name, maxPath),
		within("size", s.Size, 0, maxFileSize),
		s.deletedFile(),
		s.hugePages(),
		s.sysV(),
	)
	if err != nil {
		return err
	}
	return validExtents("extents", s.Extents, 0, uint64(padded(s.Size)))
}

// hugePages checks the size of huge pages, and that the segment has whole ones.
func (s *Segment) hugePages() error {
	switch {
	case s.Huge == 0:
		return nil
	case s.Huge < minHuge || s.Huge > maxHuge:
		return bad("huge", "is %d: huge pages have from 2^%d to 2^%d bytes", s.Huge, minHuge, maxHuge)
	case s.Path != "":
		return bad("huge", "is %d in a deleted file", s.Huge)
	case s.Size%(1<<s.Huge) != 0:
		return bad("size", "%d is not a multiple of its page size, 2^%d", s.Size, s.Huge)
	}
	return nil
}

// deletedFile checks what only a deleted file has.
func (s *Segment) deletedFile() error {
	if s.Path == "" {
		if len(s.XAttrs) > 0 {
			return bad("xattrs", "there are %d, and it is no deleted file", len(s.XAttrs))
		}
		return nil
	}
	switch {
	case s.Memfd:
		return bad("path", "is %q in a memfd", s.Path)
	case !strings.HasPrefix(s.Path, "/") || strings.HasSuffix(s.Path, "/"):
		return bad("path", "%q is not the absolute path of a file", s.Path)
	case s.Mode&sIFMT != sIFREG:
		return bad("mode", "%#o is not that of a regular file", s.Mode)
	case s.Seals != 0:
		return bad("seals", "are %#x in a deleted file", s.Seals)
	case len(s.XAttrs) > maxXAttrs:
		return bad("xattrs", "there are %d", len(s.XAttrs))
	}
	for i, x := range s.XAttrs {
		if err := text("name", x.Name, maxXAttrName); err != nil {
			return at(err, "xattrs[%d]", i)
		}
		if !strings.HasPrefix(x.Name, "user.") || len(x.Value) > maxXAttr {
			return at(bad("name", "%q of %d bytes is none that the file of a user has", x.Name, len(x.Value)), "xattrs[%d]", i)
		}
	}
	return path("path", s.Path)
}

// sysV checks what only shared memory of System V has.
func (s *Segment) sysV() error {
	v := s.SysV
	if v == nil {
		return nil
	}
	page := int64(PageSize)
	if s.Huge != 0 {
		page = 1 << s.Huge
	}
	switch {
	case s.Memfd || s.Path != "" || s.Name != "" || s.Seals != 0:
		return bad("sysv", "is there beside a name, path or seals")
	case v.Size == 0 || v.Size > maxFileSize || (int64(v.Size)+page-1)/page != (s.Size+page-1)/page:
		return bad("sysv.size", "is %d, that of the memory %d", v.Size, s.Size)
	case v.Mode&^maxMode != 0:
		return bad("sysv.mode", "is %#o", v.Mode)
	case v.Dest && v.Key != 0:
		return bad("sysv.key", "is %#x in a segment that is marked for removal", uint32(v.Key))
	case !v.Dest && v.Key != v.Made:
		return bad("sysv.made", "is %#x, the key %#x", uint32(v.Made), uint32(v.Key))
	}
	return first(
		within("sysv.id", int64(v.ID), 0, 1<<31-1),
		within("sysv.cpid", int64(v.CPID), 0, maxPID),
		within("sysv.lpid", int64(v.LPID), 0, maxPID),
	)
}

// attachment checks that a VMA shows what shmat(2) could have attached, if that is what it shows.
func (v *VMA) attachment(s *Segment) error {
	if s.SysV == nil {
		return nil
	}
	most := uint64(padded(s.Size))
	switch {
	case v.Flags&mapType != mapShared:
		return bad("flags", "%#x are not those of shared memory of System V", v.Flags)
	case v.Offset > most || v.End-v.Start > most-v.Offset:
		return bad("offset", "%#x bytes at offset %#x of a segment of %d", v.End-v.Start, v.Offset, s.Size)
	}
	return nil
}
