package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/damage"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/pack"
	"github.com/ckptfs/ckptfs/store/secret"
	"github.com/minio/minio-go/v7"
)

// openShared connects to the bucket and prepares the cache folder for it.
func (s *Store) openShared(location string) error {
	b, err := bucket.Open(location, s.o.Patience, s.o.attempt)
	if err != nil {
		return err
	}
	dir := s.o.Cache
	if dir == "" {
		if dir, err = os.UserCacheDir(); err != nil {
			return fmt.Errorf("a store in a bucket needs a folder for its cache: %w", err)
		}
		dir = filepath.Join(dir, "ckptfs")
	}
	sum := chunk.Sum([]byte(b.Where()))
	s.dir = filepath.Join(dir, hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if s.lock, err = lockDir(s.dir); err != nil {
		return err
	}
	s.sh = newShared(s, b)
	text, err := s.sh.version()
	if err != nil {
		return err
	}
	v, err := parseVersion(location, location+"/"+versionName, text, s.sec)
	if err != nil {
		return err
	}
	if v.grace > 0 {
		s.sh.grace = v.grace
	}
	return s.claimCache(text)
}

// version returns the bucket's version object, and writes it if there is none.
func (sh *shared) version() (string, error) {
	for range versionTries {
		b, err := sh.getTwice(versionName)
		var re minio.ErrorResponse
		if errors.As(err, &re) && re.Code == minio.NoSuchBucket {
			return "", fmt.Errorf("there is no bucket %q; create it first: %w", sh.b.Name, err)
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return string(b), err
		}
		if err := sh.mayInit(); err != nil {
			return "", err
		}
		err = sh.b.PutBytes(sh.ctx, versionName, versionText(sh.s.sec, sh.grace), bucket.IfAbsent)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s/%s was written %d times and still is not there; the server contradicts itself", sh.b.URL, versionName, versionTries)
}

// versionTries bounds how often a version object that was written is looked for in vain.
const versionTries = 5

// getTwice returns a small object that has no checksum of its own, when it came equal twice.
func (sh *shared) getTwice(key string) (data []byte, err error) {
	err = sh.b.GetParsed(sh.ctx, key, secret.MaxKeyFile, func(b []byte) error {
		if string(b) != string(data) || data == nil {
			data = b
			return fmt.Errorf("%s/%s never comes the same: the network changes it", sh.b.URL, key)
		}
		return nil
	})
	return data, err
}

// mayInit reports whether a prefix without a version may become a store.
func (sh *shared) mayInit() error {
	ctx, cancel := context.WithCancel(sh.ctx)
	defer cancel()
	found := ""
	err := sh.b.List(ctx, "", "", func(o bucket.Object) {
		if found == "" {
			found = o.Key
			cancel() // one is enough
		}
	})
	if found != "" && found != versionName {
		return fmt.Errorf("%w: %s is not empty (%s); choose another prefix", ErrNotStore, sh.b.URL, found)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// claimCache empties the cache folder if it is that of another store.
func (s *Store) claimCache(text string) error {
	path := filepath.Join(s.dir, versionName)
	old, err := os.ReadFile(path)
	if err == nil && string(old) == text {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, n := range []string{packsName, indexName} {
		if err := os.RemoveAll(filepath.Join(s.dir, n)); err != nil {
			return err
		}
	}
	return disk.WriteFile(path, []byte(text))
}

// listShared lists the packs of the bucket, with what is about to be removed.
func (s *Store) listShared() (map[disk.ID]*pack.Pack, error) {
	sh := s.sh
	now := bootTime()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, err := sh.readMarkers(sh.ctx); err != nil {
		return nil, err
	}
	m := map[disk.ID]*pack.Pack{}
	err := sh.b.List(sh.ctx, packsName+"/", "", func(o bucket.Object) {
		if id, ok := keyID(o.Key, disk.PackExt); ok {
			p := &pack.Pack{ID: id, Size: o.Size, Created: id.Time().UnixNano()}
			p.Doomed.Store(s.doomed[id])
			m[id] = p
			if strings.Compare(id.String(), sh.newest.String()) > 0 {
				sh.newest = id
			}
		}
	})
	if err != nil {
		return nil, err
	}
	sh.seen.Store(now)
	return m, s.files.Cache.AdoptOld(m)
}

// tailLen is how much of the end of a pack is fetched for its footer: enough for 6,500 chunks.
const tailLen = 256 << 10

// footerReader reads head and footer of a pack in a bucket: the end comes with one request,
// and the head is known.
type footerReader struct {
	s    *Store
	p    *pack.Pack
	tail []byte
	from int64 // offset of tail
	err  error
}

func (s *Store) newFooterReader(p *pack.Pack) *footerReader {
	r := &footerReader{s: s, p: p, from: max(0, p.Size-tailLen)}
	r.tail = make([]byte, p.Size-r.from)
	r.err = s.files.Cache.Fetch(p, r.tail, r.from)
	return r
}

func (r *footerReader) ReadAt(b []byte, off int64) (int, error) {
	switch {
	case r.err != nil:
		return 0, r.err
	case off >= r.from:
		return copy(b, r.tail[off-r.from:]), nil
	case off == 0 && len(b) == pack.HeadLen:
		return copy(b, pack.Head(r.s.sec, r.p.ID, r.p.Created)), nil
	}
	return len(b), r.s.files.Cache.Fetch(r.p, b, off)
}

// readSharedFooter is ReadFooter for a pack of a bucket that is not here. What came damaged
// is asked for again.
func (s *Store) readSharedFooter(p *pack.Pack) (info *pack.Info, err error) {
	for tries := 1; ; tries++ {
		info, err = pack.Read(s.sec, s.newFooterReader(p), p.Size)
		if err == nil || !damage.Is(err) || errors.Is(err, pack.ErrGone) || tries == 3 {
			return info, err
		}
		if !p.Sealed.Load() {
			if err := s.sizeAgain(p); err != nil {
				return nil, err
			}
		}
	}
}

// sizeAgain asks for the size of a pack, which a damaged listing may have told wrong.
func (s *Store) sizeAgain(p *pack.Pack) error {
	o, err := s.sh.b.Stat(s.sh.ctx, packKey(p.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", pack.ErrGone, err)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.Size = o.Size
	return nil
}
