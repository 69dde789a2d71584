package bucket

import (
	"errors"
	"io/fs"
	"testing"
)

func TestLocations(t *testing.T) {
	for _, bad := range []string{"s3://", "s3:///x", "s3://b/x y", "s3://b?x"} {
		if _, _, err := parseBucket(bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for loc, want := range map[string][2]string{"s3://b": {"b", ""}, "s3://b/": {"b", ""}, "s3://b/x/y/": {"b", "x/y/"}} {
		if n, p, err := parseBucket(loc); err != nil || [2]string{n, p} != want {
			t.Errorf("%q: %q %q %v", loc, n, p, err)
		}
	}
}
