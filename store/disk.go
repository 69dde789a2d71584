package store

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// layoutVersion is the newest layout this program reads and the one it writes.
const layoutVersion = 3

const versionPrefix = "ckptfs store "

// The names inside a store folder.
const (
	lockName    = "lock"
	versionName = "version"
	packsName   = "packs"
	indexName   = "index"
	imagesName  = "images"

	packExt = ".pack"
	runExt  = ".run"
	imgExt  = ".img"
	tmpExt  = ".tmp" // not visible yet; whoever opens the store removes it
)

// fileID names a pack, an index run or a record: the time in ms, 6 bytes big endian, and 10
// random ones. So machines that share a bucket never choose the same one, and a listing
// that begins at a time has what is younger.
type fileID [16]byte

func (id fileID) String() string { return hex.EncodeToString(id[:]) }

func newID() fileID { return idAt(time.Now()) }

func idAt(t time.Time) (id fileID) {
	rand.Read(id[:]) // never fails, see crypto/rand
	binary.BigEndian.PutUint64(id[:], uint64(t.UnixMilli())<<16|uint64(id[6])<<8|uint64(id[7]))
	return id
}

// time is when the ID was made. IDs of layout 1 were random and tell nothing.
func (id fileID) time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:]) >> 16))
}

// Bits of the last byte of a pack's ID: what is in it, without reading it.
const (
	packNodes = 1 // nodes of chunk lists
	packFast  = 2 // chunks stored in no time: MinLZ (s2 in layout 2), or as they are because that did not pay
)

// newPackID makes the ID of a pack; kind is 0, packNodes or packFast.
func newPackID(kind byte) fileID {
	id := newID()
	id[15] = id[15]&^(packNodes|packFast) | kind
	return id
}

// nodes reports whether a pack holds nodes of chunk lists. Packs of layout 1 hold both,
// so it is only a hint.
func (id fileID) nodes() bool { return id[15]&packNodes != 0 }

// fast reports whether a pack waits for Settle. In older packs the bit is random, so that is
// only a hint too.
func (id fileID) fast() bool { return id[15]&(packNodes|packFast) == packFast }

// parseID takes the ID out of a file name with the extension ext.
func parseID(name, ext string) (id fileID, ok bool) {
	s, found := strings.CutSuffix(name, ext)
	if !found || len(s) != 2*len(id) {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(s))
	return id, err == nil && id.String() == s
}

// lockDir takes the folder's lock. The lock is the kernel's (flock), so a holder that
// died leaves none; the number inside only tells people who it is.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
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

// checkVersion reads the version file, or writes it into a new store, and compares keys.
func checkVersion(dir string, sec *secrets) error {
	path := filepath.Join(dir, versionName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mayInit(dir); err != nil {
			return err
		}
		return writeFile(path, versionText(sec, 0))
	}
	if err != nil {
		return err
	}
	v, err := parseVersion(dir, path, string(b), sec)
	if err == nil && v.layout < layoutVersion {
		// What we write from now on is not for the program that made it.
		return writeFile(path, versionText(sec, 0))
	}
	return err
}

// version is what a version file says.
type version struct {
	layout int
	key    string        // fingerprint; "" if not encrypted
	grace  time.Duration // in a bucket
}

// versionText is the content of a version file. grace is 0 in a folder.
func versionText(sec *secrets, grace time.Duration) []byte {
	b := fmt.Appendf(nil, "%s%d\n%s%s\n", versionPrefix, layoutVersion, idLine, newID())
	if sec != nil {
		b = fmt.Appendf(b, "%s%s\n", keyLine, sec.fingerprint())
	}
	if grace > 0 {
		b = fmt.Appendf(b, "%s%s\n", graceLine, grace)
	}
	return b
}

// parseVersion reads and checks the version file path of the store dir.
func parseVersion(dir, path, text string, sec *secrets) (v version, err error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	s, ok := strings.CutPrefix(strings.TrimSpace(lines[0]), versionPrefix)
	v.layout, err = strconv.Atoi(s)
	if !ok || err != nil || v.layout < 1 {
		return v, fmt.Errorf("%w: %s is not a version file", ErrNotStore, path)
	}
	if v.layout > layoutVersion {
		return v, &VersionError{Dir: dir, Found: v.layout, Known: layoutVersion}
	}
	for _, l := range lines[1:] {
		if err := v.line(l); err != nil {
			return v, fmt.Errorf("%w: %s: %w", ErrNotStore, path, err)
		}
	}
	if v.key != "" != (sec != nil) || v.key != "" && !sec.matches(v.key) {
		return v, &KeyError{Dir: dir, Sealed: v.key != "", Given: sec != nil}
	}
	return v, nil
}

func (v *version) line(l string) (err error) {
	name, value, _ := strings.Cut(l, " ")
	switch name + " " {
	case idLine: // tells two stores of the same name apart
	case keyLine:
		v.key = value
	case graceLine:
		v.grace, err = time.ParseDuration(value)
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
		case lockName, versionName + tmpExt:
		case packsName, indexName, imagesName:
			sub, err := os.ReadDir(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			if len(sub) > 0 {
				return fmt.Errorf("%w: %s holds data but its file %q is missing; if it was written by layout version %d, put back %q",
					ErrNotStore, dir, versionName, layoutVersion, fmt.Sprint(versionPrefix, layoutVersion))
			}
		default:
			return fmt.Errorf("%w: %s is not empty (%s); choose an empty folder", ErrNotStore, dir, e.Name())
		}
	}
	return nil
}

// makeDirs makes the folders of a store; existing ones stay as they are.
func makeDirs(dir string) error {
	for _, n := range []string{packsName, indexName, imagesName} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return syncDir(dir)
}

// writeFile makes the file path hold b, durable before visible: whoever sees the name
// sees all of b, also after a power cut.
func writeFile(path string, b []byte) error {
	err := writeTemp(path, b)
	if err == nil {
		err = publish(path+tmpExt, path)
	}
	if err != nil {
		os.Remove(path + tmpExt) // best effort: Open removes what stays
	}
	return err
}

// writeTemp is the first half of writeFile: all but the name.
func writeTemp(path string, b []byte) (err error) {
	f, err := os.OpenFile(path+tmpExt, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// publish gives a synced temporary file its final name.
func publish(tmp, path string) error {
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// removeTemps removes what a process that died left unfinished in a folder.
func removeTemps(dir string) (int, error) {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range ents {
		if strings.HasSuffix(e.Name(), tmpExt) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// checkName refuses what cannot be the name of a file in images/.
func checkName(name string) error {
	// What is no UTF-8 would be written, but not be read again: CBOR refuses it.
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") || !utf8.ValidString(name) {
		return fmt.Errorf("%q cannot name an image: it must be a valid file name in UTF-8: %w", name, fs.ErrInvalid)
	}
	return nil
}
