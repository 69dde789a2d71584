package kind

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens a path and closes it at the end of the test.
func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o640)
	if err != nil {
		t.Fatalf("open %q: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// file makes a file with this content.
func file(t *testing.T, path, content string) string {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o640))
	return path
}

// refused wants exactly one refusal, whose sentence has all of these words.
func refused(t *testing.T, all []image.Finding, words ...string) {
	t.Helper()
	wantFinding(t, all, image.Refuse, words...)
}

func wantFinding(t *testing.T, all []image.Finding, sev image.Severity, words ...string) {
	t.Helper()
	all = slices.DeleteFunc(slices.Clone(all), func(f image.Finding) bool { return f.Severity != sev })
	if len(all) != 1 {
		t.Fatalf("%d findings of severity %d, not 1: %v", len(all), sev, all)
	}
	wantWords(t, all[0].String(), words...)
	if all[0].Remedy == "" {
		t.Errorf("no remedy: %s", all[0])
	}
}

func wantWords(t *testing.T, sentence string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(sentence, w) {
			t.Errorf("%q does not say %q", sentence, w)
		}
	}
}
