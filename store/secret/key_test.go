package secret

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := NewKeyFile(path); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	before, _ := os.ReadFile(path)
	if err := NewKeyFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key file was overwritten: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the key changed")
	}
	other := filepath.Join(t.TempDir(), "key")
	if err := NewKeyFile(other); err != nil {
		t.Fatal(err)
	}
	a, err := ReadKeyFile(path)
	b, err2 := ReadKeyFile(other)
	if err != nil || err2 != nil || *a == *b {
		t.Errorf("two new keys are the same (%v, %v)", err, err2)
	}
	for _, bad := range [][]byte{nil, []byte("x"), before[:20], before[:len(before)-3], append([]byte("y"), before...)} {
		os.WriteFile(path, bad, 0o600)
		if _, err := ReadKeyFile(path); !errors.Is(err, errNoKey) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ReadKeyFile(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte(keyPrefix + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"))
	f.Add([]byte(keyPrefix))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := parseKey(b); (k == nil) == (err == nil) {
			t.Errorf("%v, %v", k, err)
		}
	})
}

// TestProve: a proof is of one key and one challenge.
func TestProve(t *testing.T) {
	a, b := &Key{master: [32]byte{1}}, &Key{master: [32]byte{2}}
	one := a.Prove([]byte("challenge"))
	if one != a.Prove([]byte("challenge")) {
		t.Error("two proofs of the same differ")
	}
	if one == b.Prove([]byte("challenge")) || one == a.Prove([]byte("another")) || one == a.master {
		t.Error("a proof is good for another key or challenge")
	}
}
