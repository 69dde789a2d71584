package e2e

import (
	"os"
	"strconv"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// soak returns n, many times over when a soak was asked for.
func soak(t testing.TB, n int) int {
	t.Helper()
	s := os.Getenv("CKPTFS_SOAK")
	if s == "" {
		return n
	}
	f, err := strconv.Atoi(s)
	if err != nil || f < 1 {
		t.Fatalf("CKPTFS_SOAK is %q; it is a factor, 1 or more", s)
	}
	return n * f
}
