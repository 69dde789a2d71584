// Package layout is what a store folder, or a bucket, is made of: its names, its version file, and
// the lock of the one process that has it open.
package layout

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/secret"
	"golang.org/x/sys/unix"
)

// Newest is the newest layout this program reads and the one it writes.
const Newest = 3

// VersionPrefix begins the first line of a version file; the layout version follows.
const VersionPrefix = "ckptfs store "

// The names inside a store folder, and below the prefix of a bucket.
const (
	LockName    = "lock"
	VersionName = "version"
	Packs       = "packs"
	Index       = "index"
	Images      = "images"
)

// Lock takes the folder's lock. The lock is the kernel's (flock), so a holder that
// died leaves none; the number inside only tells people who it is.
func Lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, LockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		b, _ := io.ReadAll(io.LimitReader(f, 32)) // an unreadable number is a 0
		pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		f.Close()
		return nil, &LockedError{Dir: dir, PID: pid}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return f, nil
}

// What the lines of the version file after the first begin with.
const (
	idLine    = "id "
	keyLine   = "key "
	graceLine = "grace "
)

// Check reads the version file, or writes it into a new store, and compares keys.
func Check(dir string, sec *secret.Secrets) error {
	path := filepath.Join(dir, VersionName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mayInit(dir); err != nil {
			return err
		}
		return disk.WriteFile(path, Text(sec, 0))
	}
	if err != nil {
		return err
	}
	v, err := Parse(dir, path, string(b), sec)
	if err == nil && v.Layout < Newest {
		// What we write from now on is not for the program that made it.
		return disk.WriteFile(path, Text(sec, 0))
	}
	return err
}

// Version is what a version file says.
type Version struct {
	Layout int
	Key    string        // fingerprint; "" if not encrypted
	Grace  time.Duration // in a bucket
}

// Text is the content of a version file. grace is 0 in a folder.
func Text(sec *secret.Secrets, grace time.Duration) []byte {
	b := fmt.Appendf(nil, "%s%d\n%s%s\n", VersionPrefix, Newest, idLine, disk.NewID())
	if sec != nil {
		b = fmt.Appendf(b, "%s%s\n", keyLine, sec.Fingerprint())
	}
	if grace > 0 {
		b = fmt.Appendf(b, "%s%s\n", graceLine, grace)
	}
	return b
}

// Parse reads and checks the version file path of the store dir.
func Parse(dir, path, text string, sec *secret.Secrets) (v Version, err error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	s, ok := strings.CutPrefix(strings.TrimSpace(lines[0]), VersionPrefix)
	v.Layout, err = strconv.Atoi(s)
	if !ok || err != nil || v.Layout < 1 {
		return v, fmt.Errorf("%w: %s is not a version file", ErrNotStore, path)
	}
	if v.Layout > Newest {
		return v, &VersionError{Dir: dir, Found: v.Layout, Known: Newest}
	}
	for _, l := range lines[1:] {
		if err := v.line(l); err != nil {
			return v, fmt.Errorf("%w: %s: %w", ErrNotStore, path, err)
		}
	}
	if v.Key != "" != (sec != nil) || v.Key != "" && !sec.Matches(v.Key) {
		return v, &KeyError{Dir: dir, Sealed: v.Key != "", Given: sec != nil}
	}
	return v, nil
}

func (v *Version) line(l string) (err error) {
	name, value, _ := strings.Cut(l, " ")
	switch name + " " {
	case idLine: // tells two stores of the same name apart
	case keyLine:
		v.Key = value
	case graceLine:
		v.Grace, err = time.ParseDuration(value)
	default:
		err = fmt.Errorf("%q is not known", l)
	}
	return err
}

// mayInit reports whether a folder without a version file may become a store: it must
// hold nothing of anyone else's, and no data of ours.
func mayInit(dir string) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		switch e.Name() {
		case LockName, VersionName + disk.TmpExt:
		case Packs, Index, Images:
			sub, err := os.ReadDir(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			if len(sub) > 0 {
				return fmt.Errorf("%w: %s holds data but its file %q is missing; if it was written by layout version %d, put back %q",
					ErrNotStore, dir, VersionName, Newest, fmt.Sprint(VersionPrefix, Newest))
			}
		default:
			return fmt.Errorf("%w: %s is not empty (%s); choose an empty folder", ErrNotStore, dir, e.Name())
		}
	}
	return nil
}

// MakeDirs makes the folders of a store; existing ones stay as they are.
func MakeDirs(dir string) error {
	for _, n := range []string{Packs, Index, Images} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return disk.SyncDir(dir)
}
