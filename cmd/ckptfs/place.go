package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/ckptfs/ckptfs/store"
	"github.com/spf13/pflag"
)

// storeFlags say which store a command works on.
type storeFlags struct {
	place, keyFile, cache string
	cacheSize             bytesFlag
}

// add adds the flags; use is what the command does with the store.
func (f *storeFlags) add(flags *pflag.FlagSet, use string) {
	f.cacheSize = 10 << 30
	flags.StringVar(&f.place, "store", defaultStore(), use+" `PLACE`: a folder, or s3://BUCKET/PREFIX")
	flags.StringVar(&f.keyFile, "key-file", "", "the key in `FILE` encrypts the store (see ckptfs key new)")
	flags.StringVar(&f.cache, "cache", defaultCache(), "keep what is needed here of a store in a bucket in the folder `DIR`")
	flags.Var(&f.cacheSize, "cache-size", "the cache of a bucket takes no more than `SIZE`")
}

// defaultStore is where checkpoints go if nobody says otherwise.
func defaultStore() string { return defaultDir("/var/lib/ckptfs", "XDG_DATA_HOME", ".local/share") }

// defaultCache is where the cache of a bucket is if nobody says otherwise.
func defaultCache() string { return defaultDir("/var/cache/ckptfs", "XDG_CACHE_HOME", ".cache") }

func defaultDir(root, env, home string) string {
	if os.Getuid() == 0 {
		return root
	}
	if d := os.Getenv(env); d != "" {
		return filepath.Join(d, "ckptfs")
	}
	return filepath.Join(os.Getenv("HOME"), home, "ckptfs")
}

// bucketPrefix begins a place that is no folder.
const bucketPrefix = "s3://"

// storeLocation makes the name of a folder absolute and leaves that of a bucket as it is.
func storeLocation(place string) (string, error) {
	scheme, rest, other := strings.Cut(place, "://")
	switch {
	case store.IsBucket(place) && strings.Trim(rest, "/") == "":
		return "", usagef("%s names no bucket: want s3://BUCKET or s3://BUCKET/PREFIX", place)
	case store.IsBucket(place):
		return strings.TrimRight(place, "/"), nil
	case other && !strings.Contains(scheme, "/"):
		return "", usagef("a store is a folder or s3://BUCKET/PREFIX; %s is neither", place)
	}
	return filepath.Abs(place)
}

// resolve makes every path absolute: a server in the background works elsewhere.
func (f *storeFlags) resolve() (err error) {
	if f.place, err = storeLocation(f.place); err != nil {
		return err
	}
	for _, p := range []*string{&f.keyFile, &f.cache} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	return nil
}

// folder is the local folder of the store: its own, or that for its bucket in the cache.
func (f *storeFlags) folder() string {
	if bucket, ok := strings.CutPrefix(f.place, bucketPrefix); ok {
		return filepath.Join(f.cache, url.QueryEscape(bucket))
	}
	return f.place
}

// exists fails if there is no store: opening it would make one.
func (f *storeFlags) exists() error {
	if store.IsBucket(f.place) {
		return nil
	}
	_, err := os.Stat(f.place)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no store: %w", err)
	}
	return err
}

// open opens the store. log takes what was found and put in order; nil: nobody.
func (f *storeFlags) open(log func(string)) (*store.Store, error) {
	o := store.Options{CacheSize: int64(f.cacheSize), Log: log}
	if store.IsBucket(f.place) {
		o.Cache = filepath.Join(f.folder(), "cache")
	}
	var err error
	if o.Host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("what is this machine called? %w", err)
	}
	if o.Key, err = f.key(); err != nil {
		return nil, err
	}
	return store.Open(f.place, o)
}

// key reads the key that was given; nil: none was.
func (f *storeFlags) key() (*store.Key, error) {
	if f.keyFile == "" {
		return nil, nil
	}
	return store.ReadKeyFile(f.keyFile)
}
