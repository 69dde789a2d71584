package test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module is the path of our module; what is below it is "ours".
const module = "github.com/ckptfs/ckptfs"

// mayImport says which of our packages a package may import. A name covers the packages below
// it, which may import each other, unless one has an entry of its own. Test files are held to
// the same rules.
var mayImport = map[string][]string{
	"store": {"store/ahead", "store/bucket", "store/cache", "store/chunk", "store/codec", "store/collect", "store/damage", "store/disk", "store/fleet",
		"store/index", "store/layout", "store/pack",
		"store/record", "store/retain", "store/secret", "store/tree", "store/lossyfs", "store/s3test"},
	"store/chunk":  {},
	"store/disk":   {},
	"store/secret": {"store/chunk", "store/disk"},
	"store/cache":  {"store/chunk"},
	"store/codec":  {"store/chunk", "store/secret"},
	"store/damage": {"store/bucket", "store/chunk"},
	"store/layout": {"store/disk", "store/secret"},
	"store/fleet":  {"store/bucket", "store/chunk", "store/disk", "store/index", "store/layout", "store/pack", "store/record", "store/secret", "store/tree"},
	"store/collect": {"store/ahead", "store/cache", "store/chunk", "store/codec", "store/damage", "store/disk", "store/fleet", "store/index", "store/pack",
		"store/record", "store/secret", "store/tree"},
	"store/ahead":    {"store/cache", "store/chunk", "store/codec", "store/damage", "store/pack", "store/tree"},
	"store/bucket":   {},
	"store/pack":     {"store/chunk", "store/codec", "store/disk", "store/secret"},
	"store/index":    {"store/chunk", "store/disk", "store/pack", "store/secret"},
	"store/tree":     {"store/chunk"},
	"store/record":   {"store/chunk", "store/disk", "store/secret", "store/tree"},
	"store/retain":   {"store/record"},
	"store/lossyfs":  {},
	"store/s3test":   {},
	"ckpt/procfs":    {},
	"ckpt/quickread": {},
	"ckpt/kmem":      {},
	"ckpt/ptrace":    {"ckpt/quickread"},
	"ckpt/steplog":   {},
	"ckpt/image":     {"store"},
	"ckpt/policy":    {},
	"ckpt/sysv":      {"ckpt/procfs", "ckpt/quickread"},
	"ckpt/lazymem":   {},
	"ckpt/uffd":      {},
	"ckpt/netlock":   {"ckpt/procfs"},
	"ckpt/kind":      {"ckpt/image", "ckpt/kmem", "ckpt/netlock", "ckpt/policy", "ckpt/procfs", "ckpt/quickread"},
	"ckpt/task":      {"ckpt/image", "ckpt/kmem", "ckpt/procfs", "ckpt/ptrace", "ckpt/quickread"},
	"ckpt":           {"ckpt/kmem", "ckpt/lazymem", "ckpt/netlock", "ckpt/procfs", "ckpt/ptrace", "ckpt/image", "ckpt/kind", "ckpt/policy", "ckpt/quickread", "ckpt/task", "ckpt/steplog", "ckpt/sysv", "ckpt/uffd", "store"},
	"restore":        {"ckpt/kmem", "ckpt/lazymem", "ckpt/procfs", "ckpt/ptrace", "ckpt/image", "ckpt/kind", "ckpt/policy", "ckpt/quickread", "ckpt/task", "ckpt/steplog", "ckpt/sysv", "ckpt/uffd", "store"},
	"fusefs":         {"ckpt/image", "ckpt/policy", "store"},
	"cmd/ckptfs":     {"fusefs", "ckpt", "ckpt/netlock", "ckpt/image", "ckpt/kind", "ckpt/kmem", "ckpt/lazymem", "ckpt/policy", "ckpt/procfs", "ckpt/ptrace", "ckpt/quickread", "ckpt/steplog", "ckpt/task", "ckpt/uffd", "restore", "store"},
	"test":           {"store/s3test", "ckpt/sysv"},

	"test/e2e":          {"test", "store/s3test", "ckpt/sysv", "ckpt/image"}, // the last to spoil images of real programs
	"test/bench/chunks": {"ckpt/image", "ckpt/procfs", "store"},
}

// testOnly are packages that nothing which is shipped may import.
var testOnly = []string{"store/lossyfs", "store/s3test"}

// topLevel is everything that may stand in the root of the tree.
var topLevel = []string{"cmd", "fusefs", "ckpt", "restore", "store", "test", "go.mod", "go.sum", "README.md", "CONTRIBUTING.md", "LICENSE",
	"CHANGELOG.md", "Makefile", ".ci", ".git", ".gitignore", ".gitattributes", "ckptfs"} // the last is what make build makes

// badNames are names of packages that say nothing.
var badNames = []string{"util", "utils", "common", "helpers", "misc", "base", "lib"}

// checkTree returns every break of the rules in a source tree. It reads the files itself:
// Go caches the result of a test by the files it opened, so a test that asked a command
// would go on passing.
func checkTree(tree fs.FS) ([]string, error) {
	var breaks []string
	top, err := fs.ReadDir(tree, ".")
	if err != nil {
		return nil, err
	}
	for _, e := range top {
		if !slices.Contains(topLevel, e.Name()) {
			breaks = append(breaks, fmt.Sprintf("%s: the top level is fixed, this does not belong there", e.Name()))
		}
	}
	err = fs.WalkDir(tree, ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (e.Name() == ".git" || e.Name() == "testdata"):
			return fs.SkipDir
		case e.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		more, err := checkFile(tree, name)
		breaks = append(breaks, more...)
		return err
	})
	return breaks, err
}

// checkFile returns the breaks of one Go file.
func checkFile(tree fs.FS, name string) ([]string, error) {
	src, err := fs.ReadFile(tree, name)
	if err != nil {
		return nil, err
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var breaks []string
	say := func(format string, a ...any) { breaks = append(breaks, name+": "+fmt.Sprintf(format, a...)) }
	if slices.Contains(badNames, strings.TrimSuffix(f.Name.Name, "_test")) {
		say("a package named %q says nothing", f.Name.Name)
	}
	pkg := path.Dir(name)
	rule := ruleOf(pkg)
	if rule == "" {
		say("package %s has no rule: see mayImport", pkg)
		return breaks, nil
	}
	for _, spec := range f.Imports {
		imp := strings.Trim(spec.Path.Value, `"`)
		if imp == "C" {
			say("no cgo")
		}
		ours, ok := strings.CutPrefix(imp, module+"/")
		if ok && !allowed(rule, ours) {
			say("%s may not import %s", pkg, ours)
		}
		if slices.Contains(testOnly, ours) && rule != "test" && !strings.HasSuffix(name, "_test.go") {
			say("only tests may import %s", ours)
		}
	}
	return breaks, nil
}

// ruleOf returns the entry of mayImport that covers a package.
func ruleOf(pkg string) string {
	for p := pkg; p != "."; p = path.Dir(p) {
		if _, ok := mayImport[p]; ok {
			return p
		}
	}
	return ""
}

// allowed tells whether the rule lets ours be imported.
func allowed(rule, ours string) bool {
	return ruleOf(ours) == rule || slices.Contains(mayImport[rule], ruleOf(ours))
}

func TestArchitecture(t *testing.T) {
	breaks, err := checkTree(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range breaks {
		t.Error(b)
	}
}

// TestArchitectureBites shows that the check finds what it is there for.
func TestArchitectureBites(t *testing.T) {
	imports := func(pkg, ours string) string { return "package " + pkg + "\n\nimport _ \"" + ours + "\"\n" }
	for _, c := range []struct {
		name, path, src, want string
	}{
		{"restore imports ckpt", "restore/bad.go", imports("restore", module+"/ckpt"), "restore may not import ckpt"},
		{"a test file too", "store/bad_test.go", imports("store", module+"/ckpt/image"), "store may not import ckpt/image"},
		{"fusefs imports the engine", "fusefs/bad.go", imports("fusefs", module+"/restore"), "fusefs may not import restore"},
		{"a sub-package is covered", "store/s3/bad.go", imports("s3", module+"/ckpt"), "store/s3 may not import ckpt"},
		{"ckpt imports restore", "ckpt/bad.go", imports("ckpt", module+"/restore"), "ckpt may not import restore"},
		{"procfs imports ours", "ckpt/procfs/bad.go", imports("procfs", module+"/ckpt/image"), "may not import ckpt/image"},
		{"the bench imports what it tests", "store/s3test/bad.go", imports("s3test", module+"/store"), "store/s3test may not import store"},
		{"the bench is for tests", "store/bad.go", imports("store", module+"/store/s3test"), "only tests may import store/s3test"},
		{"a room of the store knows the door", "store/chunk/bad.go", imports("chunk", module+"/store"), "store/chunk may not import store"},
		{"a room knows what is above it", "store/secret/bad.go", imports("secret", module+"/store/codec"), "store/secret may not import store/codec"},
		{"others come by the door", "fusefs/bad.go", imports("fusefs", module+"/store/codec"), "fusefs may not import store/codec"},
		{"cgo", "ckpt/ptrace/bad.go", imports("ptrace", "C"), "no cgo"},
		{"a package without a rule", "cmd/other/bad.go", imports("main", "os"), "has no rule"},
		{"a new folder", "internal/x.go", imports("internal", "os"), "top level is fixed"},
		{"a name that says nothing", "store/util/x.go", imports("util", "os"), "says nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := t.TempDir()
			writeFile(t, filepath.Join(tree, "cmd/ckptfs/main.go"), imports("main", module+"/fusefs"))
			writeFile(t, filepath.Join(tree, "ckpt/kind/pipe/pipe.go"), imports("pipe", module+"/ckpt/image"))
			if breaks, err := checkTree(os.DirFS(tree)); err != nil || len(breaks) > 0 {
				t.Fatalf("a good tree: %q, %v", breaks, err)
			}
			writeFile(t, filepath.Join(tree, c.path), c.src)
			breaks, err := checkTree(os.DirFS(tree))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(breaks, "\n"), c.want) {
				t.Errorf("breaks are %q, none says %q", breaks, c.want)
			}
		})
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
