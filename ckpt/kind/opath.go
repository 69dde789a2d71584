package kind

import (
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// pathOnly is a file of any type opened with O_PATH, symbolic links among them: a place in the
// tree of files, without any access to what is there.
type pathOnly struct{}

func (pathOnly) Name() string { return "opath" }

func (pathOnly) Match(f *Found) bool {
	return f.Flags&unix.O_PATH != 0 && strings.HasPrefix(f.Link, "/") && !isProcFile(f)
}

func (pathOnly) Check(f *Found, s *Scene) []image.Finding {
	return checkByPath(f, s, "file opened with O_PATH")
}

func (pathOnly) Dump(f *Found, s *Scene, rec *image.File) error { return dumpByPath(f, s, rec) }

func (p pathOnly) Open(rec *image.File, e *Env) (int, error) { return openByPath(rec, e, p.judge) }

func (p pathOnly) CheckOpen(rec *image.File, e *Env) (string, error) {
	return checkOpenByPath(rec, e, p.judge)
}

// judge wants the same inode; its content is not what an O_PATH descriptor stands for.
func (pathOnly) judge(rec *image.File, id *identity, now *unix.Stat_t, how rigor) (string, error) {
	return verdict(rec.Path, how, id.replaced(now))
}
