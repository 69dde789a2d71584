package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Key is what a store is encrypted with.
type Key struct{ secret [32]byte }

// NewKeyFile makes a new key and writes it to path, which must not exist (fs.ErrExist).
func NewKeyFile(path string) (err error) {
	var k Key
	rand.Read(k.secret[:]) // never fails, see crypto/rand
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("new key: %w", err)
	}
	_, err = f.WriteString(hex.EncodeToString(k.secret[:]) + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

// ReadKeyFile reads a key that NewKeyFile wrote.
func ReadKeyFile(path string) (*Key, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	k := new(Key)
	secret, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(secret) != len(k.secret) {
		return nil, fmt.Errorf("key: %s does not hold a key; make one with ckptfs key new", path)
	}
	copy(k.secret[:], secret)
	return k, nil
}
