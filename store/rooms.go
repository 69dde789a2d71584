package store

// What follows is declared in rooms, and needed by who uses the store.

import (
	"github.com/ckptfs/ckptfs/store/bucket"
	"github.com/ckptfs/ckptfs/store/cache"
	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/retain"
	"github.com/ckptfs/ckptfs/store/secret"
)

// Hash is the BLAKE3-256 of a chunk's raw bytes: its name in the store.
type Hash = chunk.Hash

// MaxChunk is the longest chunk that Put accepts, in bytes.
const MaxChunk = chunk.MaxLen

// Key encrypts a store. It comes from a key file and is never written into the store.
type Key = secret.Key

// NewKeyFile writes a new random key into a file of mode 0600 that must not exist yet
// (fs.ErrExist). Without the file nobody can read what was stored with it.
func NewKeyFile(path string) error { return secret.NewKeyFile(path) }

// ReadKeyFile reads what NewKeyFile wrote.
func ReadKeyFile(path string) (*Key, error) { return secret.ReadKeyFile(path) }

// BucketError says what a bucket did not do, after all retries.
type BucketError = bucket.Error

// IsBucket reports whether a location names a bucket, s3://BUCKET/PREFIX, and not a folder.
func IsBucket(location string) bool { return bucket.Is(location) }

// Policy says what Prune removes. An image goes if KeepLast and KeepWithin are both asked
// and none of them keeps it, or if it is among the oldest and the store is too large. With
// neither of the two nothing goes for its age. Images that were renamed always stay.
type Policy = retain.Policy

// Gathered is a range of an image that lies where its chunks were decoded to, in pieces. The
// zero value is ready for Gather.
type Gathered = cache.Gathered
