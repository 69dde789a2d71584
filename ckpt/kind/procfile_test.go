package kind

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

func TestProcFile(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags int
		pos   int64
	}{
		{"", unix.O_RDONLY | unix.O_DIRECTORY, 0}, {"", unix.O_PATH, 0}, {"exe", unix.O_PATH | unix.O_NOFOLLOW, 0},
		{"maps", unix.O_RDONLY | unix.O_NONBLOCK, 0}, {"maps", unix.O_RDONLY, 100}, {"smaps", unix.O_RDONLY, 0}, {"status", unix.O_RDONLY, 1}, {"stat", unix.O_RDONLY, 7},
		{"mem", unix.O_RDWR, 0x7000}, {"environ", unix.O_RDONLY, 3}, {"auxv", unix.O_RDONLY, 16}, {"pagemap", unix.O_RDONLY, 8},
		{"comm", unix.O_RDWR, 0}, {"oom_score_adj", unix.O_WRONLY, 0}, {"fd", unix.O_RDONLY, 3}, {"task", unix.O_RDONLY, 0},
		{"task/TID/stat", unix.O_RDONLY, 5}, {"task/TID", unix.O_RDONLY, 0}, {"net/dev", unix.O_RDONLY, 0}, {"cmdline", unix.O_RDONLY, 2},
	} {
		s := newStage(t)
		s.withSelf()
		tid := s.env.Manifest.Tasks[0].Threads[0].TID
		name := strings.Replace(c.name, "TID", strconv.Itoa(int(tid)), 1)
		fd := open(t, "/proc/self/"+name, c.flags)
		if c.pos != 0 {
			_, err := unix.Seek(fd, c.pos, unix.SEEK_SET)
			must(t, err)
		}
		got := s.trip(fd)
		if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", got[0])); err != nil || link != filepath.Clean(fmt.Sprintf("/proc/%d/%s", os.Getpid(), name)) {
			t.Errorf("%s is %s now (%v)", name, link, err)
		}
	}
	s := newStage(t)
	s.withSelf()
	s.add(open(t, "/proc/self/mountinfo", unix.O_RDONLY))
	wantFinding(t, s.check(), image.Lose, "poll(2)", "changes of mounts")
}

// TestProcFileDead restores files of a process that was reaped.
func TestProcFileDead(t *testing.T) {
	pid, end := child(t)
	var fds []int
	for _, name := range []string{"stat", "fd", "", "mem", "task", fmt.Sprintf("task/%d/status", pid), "maps"} {
		fds = append(fds, open(t, fmt.Sprintf("/proc/%d/%s", pid, name), unix.O_RDONLY))
	}
	_, err := unix.Seek(fds[3], 5, unix.SEEK_SET)
	must(t, err)
	half := open(t, fmt.Sprintf("/proc/%d/stat", pid), unix.O_RDONLY)
	_, err = unix.Read(half, make([]byte, 3))
	must(t, err)
	end()
	s := newStage(t)
	s.withSelf()
	var all []*Found
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			all = append(all, s.add(fd)...)
		}
	}
	if len(all) != len(fds)-1 {
		t.Errorf("%d of %d have a stat", len(all), len(fds))
	}
	must(t, image.Refusals(s.check()))
	files := s.dump()
	stand, end := child(t)
	s.env.Dead = map[string]int{}
	for i := range files {
		d, err := procFile{}.Dead(&files[i])
		must(t, err)
		if len(d) != 1 || d[0].PID != pid {
			t.Fatalf("%s: dead is %v", files[i].Path, d)
		}
		s.env.Dead[d[0].Key] = stand
	}
	got, err := s.open()
	must(t, err)
	end()
	b := make([]byte, 9)
	for i, f := range all {
		n, err := unix.Read(f.FD, b)
		n2, err2 := unix.Read(got[i], b)
		if n != n2 || err != err2 {
			t.Errorf("%s gave %d %v and gives %d %v", f.Link, n, err, n2, err2)
		}
	}
	s = newStage(t)
	s.withSelf()
	s.add(half)
	refused(t, s.check(), "being read at position 3", "has ended")
}

// fetch gets a descriptor of another process, which may not have it yet.
func fetch(t *testing.T, pid, num int, comm string) int {
	t.Helper()
	for range 5000 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // comes later in an execve than the name
		if err == nil && strings.TrimSpace(string(b)) == comm && len(env) > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	pidfd := newPidFD(t, pid, 0)
	fd, err := unix.PidfdGetfd(pidfd, num, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestProcFileStale(t *testing.T) {
	for _, name := range []string{"maps", "smaps", "mem", "environ", "auxv", "pagemap", "numa_maps"} {
		cmd := exec.Command("bash", "-c", "exec 7</proc/self/"+name+"; exec sleep 1000")
		must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		fd := fetch(t, cmd.Process.Pid, 7, "sleep")
		s := newStage(t)
		s.scene.Member = func(id int) bool { return id == cmd.Process.Pid }
		f := s.add(fd)[0]
		before := undisturbed(t, fd)
		refused(t, s.check(), f.Link, "before its process called execve")
		if after := undisturbed(t, fd); after != before {
			t.Errorf("%s: the question changed %s to %s", name, before, after)
		}
	}
}

func TestProcFileRefusals(t *testing.T) {
	pid, _ := child(t)
	outside := open(t, fmt.Sprintf("/proc/%d/stat", pid), unix.O_RDONLY)
	smaps := open(t, "/proc/self/smaps", unix.O_RDONLY)
	_, err := unix.Read(smaps, make([]byte, 100))
	must(t, err)
	for _, c := range []struct {
		fd    int
		words []string
	}{
		{outside, []string{fmt.Sprintf("about pid %d (sleep)", pid), "outside the tree"}},
		{open(t, "/proc/self/fdinfo/0", unix.O_RDONLY), []string{"tells of a descriptor or mapping"}},
		{open(t, "/proc/self/uid_map", unix.O_RDWR), []string{"open for writing"}},
		{open(t, "/proc/self/mem", unix.O_WRONLY), []string{"open for writing only"}},
		{smaps, []string{"being read at position 100"}},
	} {
		s := newStage(t)
		s.withSelf()
		s.add(c.fd)
		refused(t, s.check(), c.words...)
	}
}

// TestProcFileHostile wants a record to lead to nothing but files of processes of the image.
func TestProcFileHostile(t *testing.T) {
	s := newStage(t)
	s.withSelf()
	pid := int32(os.Getpid())
	for _, r := range []procFileRec{
		{PID: 1, Name: "status"}, {PID: pid, TID: 1, Name: "status"}, {PID: pid, Name: "../1/status"}, {PID: pid, Name: "task/1/status"},
		{PID: pid, Name: "/etc/passwd"}, {PID: pid, Name: "root/etc/passwd"}, {PID: pid, Name: "cwd"}, {PID: pid, Name: "exe"}, {PID: pid, Name: "ns/net"},
		{PID: pid, Name: "fd/0"}, {PID: -1, Name: "stat"}, {PID: 0, Name: "self/stat"}, {PID: pid, Dir: true, Name: "x"}, {PID: pid, Name: "."}, {PID: pid, Name: "x\x00"},
		{PID: 5, Dead: true, Name: "../1/stat"}, {PID: 5, Dead: true, Name: "stat"},
	} {
		rec := image.File{Kind: "procfile"}
		must(t, encodeRec(&rec, &r))
		if fd, err := (procFile{}).Open(&rec, s.env); err == nil {
			link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			unix.Close(fd)
			t.Errorf("%+v opened %s", r, link)
		}
	}
	for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR} {
		rec := image.File{Kind: "procfile", Flags: flags}
		must(t, encodeRec(&rec, &procFileRec{PID: pid, Name: "uid_map", Mode: unix.S_IFREG}))
		if _, err := (procFile{}).CheckOpen(&rec, s.env); err == nil {
			t.Error("uid_map for writing was accepted")
		}
	}
}

func FuzzParseProc(f *testing.F) {
	for _, p := range []string{"/proc/1", "/proc/1/task", "/proc/1/task/2", "/proc/1/task/2/stat", "/proc/01/x", "/proc/self/x", "/proc/1/../2", "/proc/1/net/dev"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, link string) {
		r, ok := parseProc(link)
		if ok && r.path(int(r.PID), int(r.TID)) != link {
			t.Errorf("%q came back as %q", link, r.path(int(r.PID), int(r.TID)))
		}
	})
}
