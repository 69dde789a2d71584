package secret

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ckptfs/ckptfs/store/disk"
)

// keyPrefix begins the one line of a key file; 32 random bytes in base64 follow.
const keyPrefix = "ckptfs-key-1 "

// MaxKeyFile bounds what is read of a file that is said to be a key.
const MaxKeyFile = 4096

// Key encrypts a store. It comes from a key file and is never written into the store.
type Key struct{ master [32]byte }

// NewKeyFile writes a new random key into a file of mode 0600 that must not exist yet
// (fs.ErrExist). Without the file nobody can read what was stored with it.
func NewKeyFile(path string) (err error) {
	var k Key
	rand.Read(k.master[:]) // never fails, see crypto/rand
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("new key: %w", err)
	}
	_, err = f.WriteString(keyPrefix + base64.StdEncoding.EncodeToString(k.master[:]) + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = disk.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		os.Remove(path) // best effort: half a key is refused by ReadKeyFile
		return fmt.Errorf("new key: %w", err)
	}
	return nil
}

// ReadKeyFile reads what NewKeyFile wrote.
func ReadKeyFile(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	k, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w; make one with ckptfs key new", path, err)
	}
	return k, nil
}

var errNoKey = errors.New("it holds no key")

func parseKey(b []byte) (*Key, error) {
	text, ok := bytes.CutPrefix(bytes.TrimSpace(b), []byte(keyPrefix))
	if !ok {
		return nil, errNoKey
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	k := new(Key)
	if err != nil || len(raw) != len(k.master) {
		return nil, fmt.Errorf("%w: its line is cut or damaged", errNoKey)
	}
	copy(k.master[:], raw)
	return k, nil
}
