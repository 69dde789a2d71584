package image

import (
	"errors"
	"fmt"
)

// The ways in which an image can be unusable; test for them with errors.Is.
var (
	ErrNotImage = errors.New("not a ckptfs image")
	ErrCut      = errors.New("the image is cut")
	ErrCorrupt  = errors.New("the image is damaged")
	ErrVersion  = errors.New("the image is of a newer format")
	ErrFeature  = errors.New("the image needs a feature that this version does not have")
	ErrHostile  = errors.New("the manifest of the image is inconsistent")
)

// CutError is ErrCut with the sizes in bytes. Want is at least what is missing: of a file cut
// in its header only that is known.
type CutError struct{ Have, Want int64 }

// Error says how much is there and what to do.
func (e *CutError) Error() string {
	return fmt.Sprintf("%v: it has %d of %d bytes; copy it again", ErrCut, e.Have, e.Want)
}

// Is makes it an ErrCut.
func (e *CutError) Is(target error) bool { return target == ErrCut }

// CorruptError is ErrCorrupt with the place.
type CorruptError struct {
	Chunk int    // index into Layout.Chunks, or -1
	Off   int64  // offset in the file, bytes
	What  string // what stands there and what is wrong with it
}

// Error says where the damage is and what to do.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%v at offset %d: %s; use another copy of it", ErrCorrupt, e.Off, e.What)
}

// Is makes it an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// FieldError is ErrHostile with the field of the manifest that makes no sense.
type FieldError struct {
	Path string // as in the JSON of the manifest: "tasks[3].threads[0].fd_table"
	What string // what is wrong with it
}

// Error names the field.
func (e *FieldError) Error() string { return fmt.Sprintf("%v: %s: %s", ErrHostile, e.Path, e.What) }

// Is makes it an ErrHostile.
func (e *FieldError) Is(target error) bool { return target == ErrHostile }

// FeatureError is ErrFeature with the name of the feature or unknown field.
type FeatureError struct {
	Path string // where it stands
	Name string // the feature, or "field 23"
}

// Error names the feature and says what to do.
func (e *FeatureError) Error() string {
	return fmt.Sprintf("%v: %s in %s; use the version of ckptfs that wrote it, or a newer one", ErrFeature, e.Name, e.Path)
}

// Is makes it an ErrFeature.
func (e *FeatureError) Is(target error) bool { return target == ErrFeature }

// bad starts a FieldError about the field itself; at puts what it is a part of before it.
func bad(field, format string, args ...any) error {
	return &FieldError{Path: field, What: fmt.Sprintf(format, args...)}
}

// at puts a path in front of the path of a FieldError or FeatureError.
func at(err error, format string, args ...any) error {
	prefix := fmt.Sprintf(format, args...)
	switch e := err.(type) {
	case *FieldError:
		e.Path = joinPath(prefix, e.Path)
	case *FeatureError:
		e.Path = joinPath(prefix, e.Path)
	}
	return err
}

// joinPath joins "tasks" and "[3]", or "tasks[3]" and "mm".
func joinPath(a, b string) string {
	if b == "" || b[0] == '[' {
		return a + b
	}
	return a + "." + b
}
