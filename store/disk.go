package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// layoutVersion is the newest layout this program reads and the one it writes.
const layoutVersion = 1

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

// fileID names a pack, an index run or a record: random, so that machines that share a
// bucket never choose the same one and a name tells nothing.
type fileID [16]byte

func (id fileID) String() string { return hex.EncodeToString(id[:]) }

func newID() fileID {
	var id fileID
	rand.Read(id[:]) // never fails, see crypto/rand
	return id
}

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

// checkVersion reads the version file, or writes it into a new store.
func checkVersion(dir string) error {
	path := filepath.Join(dir, versionName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mayInit(dir); err != nil {
			return err
		}
		return writeFile(path, fmt.Appendf(nil, "%s%d\n", versionPrefix, layoutVersion))
	}
	if err != nil {
		return err
	}
	s, ok := strings.CutPrefix(strings.TrimSpace(string(b)), versionPrefix)
	v, err := strconv.Atoi(s)
	if !ok || err != nil || v < 1 {
		return fmt.Errorf("%w: %s is not a version file", ErrNotStore, path)
	}
	if v > layoutVersion {
		return &VersionError{Dir: dir, Found: v, Known: layoutVersion}
	}
	return nil
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
func writeFile(path string, b []byte) (err error) {
	tmp := path + tmpExt
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
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
	if err == nil {
		err = publish(tmp, path)
	}
	if err != nil {
		os.Remove(tmp) // best effort: Open removes what stays
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
