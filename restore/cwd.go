package restore

import (
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/kind"
)

// openCwds makes and opens the working directories that were deleted, each as the user that was
// in it.
func (j *job) openCwds() error {
	for i := range j.m.Tasks {
		t := &j.m.Tasks[i]
		if t.State == image.TaskZombie {
			continue
		}
		ref := t.Threads[0].FS
		rec := &j.m.FSs[ref-1].CwdFile
		if _, ok := j.cwds[ref]; ok || rec.Kind == "" {
			continue
		}
		fail := func(err error) error {
			return &FileError{PID: int(t.PID), FD: NoFD, Path: rec.Path, What: "it was its working directory and deleted", Err: err}
		}
		k := kind.ByName(rec.Kind)
		if k == nil {
			return fail(fmt.Errorf("this version does not know files of kind %q", rec.Kind))
		}
		err := asUser(&t.Threads[0].Creds, func() error {
			fd, err := j.openRecord(k, rec)
			if err == nil {
				j.cwds[ref] = fd
			}
			return err
		})
		if err != nil {
			return fail(err)
		}
	}
	return nil
}

// cwdPath is a path that leads the stub to the working directory of an FS.
func (j *job) cwdPath(ref image.ObjRef) string {
	if fd, ok := j.cwds[ref]; ok {
		return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
	}
	return j.m.FSs[ref-1].Cwd
}
