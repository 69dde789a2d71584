package restore

import (
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// TestPlanTerminals: a terminal that is made anew controls one session, and its foreground process group is of that.
func TestPlanTerminals(t *testing.T) {
	leader := func(pid int32) image.Task {
		return image.Task{PID: pid, SID: pid, PGID: pid, State: image.TaskRunning, CtlTTY: 1}
	}
	for name, c := range map[string]struct {
		spoil func(m *image.Manifest)
		words string
	}{
		"fine":         {func(m *image.Manifest) { m.Tasks[0].Foreground = 12 }, ""},
		"two sessions": {func(m *image.Manifest) { m.Tasks = append(m.Tasks, leader(20)) }, "the same controlling terminal as that of pid 10"},
		"nobody":       {func(m *image.Manifest) { m.Tasks[0].Foreground = 99 }, "process group 99"},
		"another session": {func(m *image.Manifest) {
			m.Tasks = append(m.Tasks, image.Task{PID: 30, SID: 30, PGID: 30, State: image.TaskRunning})
			m.Tasks[0].Foreground = 30
		}, "not one of its session"},
	} {
		m := &image.Manifest{Tasks: []image.Task{leader(10), {PID: 12, SID: 10, PGID: 12, State: image.TaskRunning}}, Files: []image.File{{Kind: "pty"}}}
		c.spoil(m)
		j := &job{m: m, ttys: map[image.ObjRef]int{}}
		err := j.planTerminals()
		if c.words == "" && err != nil || c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
