package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// WriteFile makes the file path hold b, durable before visible: whoever sees the name
// sees all of b, also after a power cut.
func WriteFile(path string, b []byte) error {
	err := WriteTemp(path, b)
	if err == nil {
		err = Publish(path+TmpExt, path)
	}
	if err != nil {
		os.Remove(path + TmpExt) // best effort: Open removes what stays
	}
	return err
}

// WriteTemp is the first half of WriteFile: all but the name.
func WriteTemp(path string, b []byte) (err error) {
	f, err := os.OpenFile(path+TmpExt, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
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

// Publish gives a synced temporary file its final name.
func Publish(tmp, path string) error {
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// RemoveTemps removes what a process that died left unfinished in a folder.
func RemoveTemps(dir string) (int, error) {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range ents {
		if strings.HasSuffix(e.Name(), TmpExt) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// IsFull reports whether an error says that a disk, or a share of one, is full.
func IsFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
