package task

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"golang.org/x/sys/unix"
)

// TestCheckNothing: an ordinary process is not complained about, whatever of this package's state it has.
func TestCheckNothing(t *testing.T) {
	for _, pieces := range [][]string{nil, {"signals", "timers"}, {"prctl"}, {"batch"}, {"fifo"}, {"limits"}, {"thread=own-files"}} {
		t.Run(strings.Join(pieces, "+"), func(t *testing.T) {
			t.Parallel()
			pid, _ := start(t, pieces...)
			if all := check(t, pid); len(all) != 0 {
				t.Error(strings.Join(all, "\n"))
			}
		})
	}
}

// TestCheckRefuses: each kind of state that is not kept is named, with a remedy.
func TestCheckRefuses(t *testing.T) {
	for piece, words := range map[string][]string{
		"seccomp":                {"(seccomp)", "--security-opt seccomp=unconfined"},
		"deadline":               {"(SCHED_DEADLINE)", "chrt -o -p 0 "},
		"thread=own-fs":          {" thread ", "(own working directory)", "CLONE_FS"},
		"thread=own-personality": {" thread ", "(personality)", "0x40000"},
		"thread=own-net":         {" thread ", "(net namespace)", "nsenter -t ", " -n"},
		"thread=timer-of-dead":   {"(POSIX timer 0)", "has ended", "timer_delete"},
		"thread=zombie-leader":   {"(zombie with threads)", "pthread_exit"},
	} {
		t.Run(piece, func(t *testing.T) {
			t.Parallel()
			pid, _ := start(t, piece)
			one(t, check(t, pid), append(words, "refused: pid "+strconv.Itoa(pid))...)
		})
	}
}

// TestCheckFiles: directories and executables that are gone are no findings of a task.
func TestCheckFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pid, _ := start(t, "cwd="+dir, "rmdir="+dir)
	if all := check(t, pid); len(all) != 0 { // it is kept
		t.Errorf("a deleted working directory: %q", all)
	}
	if fs, gone, err := ReadFS(pid, 0, nil); err != nil || !gone || fs.Cwd != dir {
		t.Errorf("ReadFS of a deleted directory: %+v, %v, %v", fs, gone, err)
	}

	bin, err := fixture()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(t.TempDir(), "mine")
	if err := os.WriteFile(mine, b, 0o755); err != nil {
		t.Fatal(err)
	}
	pid, _ = startCmd(t, exec.Command(mine, "unlink="+mine))
	if all := check(t, pid); len(all) != 0 { // it is kept as well
		t.Errorf("a deleted executable: %q", all)
	}
}

// TestCheckNamespaces: every namespace that is not ours is named.
func TestCheckNamespaces(t *testing.T) {
	bin, err := fixture()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC}
	pid, _ := startCmd(t, cmd)
	all := strings.Join(check(t, pid), "\n")
	for _, w := range []string{"(uts namespace)", "(pid namespace)", "(pid_for_children namespace)", "(ipc namespace)", "nsenter -t " + strconv.Itoa(pid) + " -u"} {
		if !strings.Contains(all, w) {
			t.Errorf("%q does not say %q", all, w)
		}
	}
}

// TestCheckLandlock: where there may be a sandbox that nobody can see, it is said to be lost.
func TestCheckLandlock(t *testing.T) {
	pid, _ := start(t, "creds", "thread=plain")
	if !hasLandlock() {
		if all := check(t, pid); len(all) != 0 {
			t.Error(all)
		}
		return
	}
	one(t, check(t, pid), "lost: pid "+strconv.Itoa(pid)+" (Landlock)", "no_new_privs", "start it anew")
}

// TestCheckOnce: what all threads have in common is said once.
func TestCheckOnce(t *testing.T) {
	pid, _ := start(t, "seccomp", "thread=plain")
	one(t, check(t, pid), "refused: pid "+strconv.Itoa(pid)+" (seccomp)")
}

// TestHasUndoList: a process that holds a semaphore adjustment, and one beside it that does not.
func TestHasUndoList(t *testing.T) {
	pid, lines := start(t, "undo")
	id, err := strconv.Atoi(strings.TrimPrefix(strings.Join(lines, ""), "semid "))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.RawSyscall(unix.SYS_SEMCTL, uintptr(id), 0, unix.IPC_RMID)
	if has, err := HasUndoList(pid); err != nil || !has {
		t.Errorf("a process with an adjustment: %v, %v", has, err)
	}
	other, _ := start(t)
	if has, err := HasUndoList(other); err != nil || has {
		t.Errorf("a process without one: %v, %v", has, err)
	}
}

// TestCheckKernelThread and zombies, which have next to nothing.
func TestCheckKernelThread(t *testing.T) {
	one(t, check(t, 2), "(kernel thread)", "choose a process of user space")
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	for { // it ends by itself; it stays a zombie until Wait
		if st, err := readStatus(cmd.Process.Pid, 0); err != nil || st.State == 'Z' {
			break
		}
	}
	if all := check(t, cmd.Process.Pid); len(all) != 0 {
		t.Error(all)
	}
}

// TestCheckGone: a process that does not exist is an error, not a finding.
func TestCheckGone(t *testing.T) {
	if err := Check(1<<22-1, func(image.Finding) {}); err == nil || !gone(err) {
		t.Errorf("got %v", err)
	}
}

// TestCheckCPU: shadow stacks and tagged addresses, by the lines of the status file.
func TestCheckCPU(t *testing.T) {
	st, err := readStatus(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	st.X86ThreadFeatures, st.UntagMask = "shstk wrss ", 0x81ffffffffffffff
	var kinds []string
	if err := checkCPU(os.Getpid(), &st, func(kind, what, remedy string) { kinds = append(kinds, kind) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(kinds, []string{"shadow stack", "address tagging"}) {
		t.Error(kinds)
	}
}

// TestKcmp compares a process with itself and with another.
func TestKcmp(t *testing.T) {
	pid, _ := start(t)
	for typ, same := range map[int]bool{KcmpVM: false, KcmpFiles: false, KcmpFS: false, KcmpSighand: false} {
		if got, err := Kcmp(os.Getpid(), pid, typ); err != nil || got != same {
			t.Errorf("type %d: %v, %v", typ, got, err)
		}
		if got, err := Kcmp(pid, pid, typ); err != nil || !got {
			t.Errorf("type %d with itself: %v, %v", typ, got, err)
		}
	}
	if _, err := Kcmp(pid, 1<<22-1, KcmpVM); err == nil {
		t.Error("no error for a thread that does not exist")
	}
}
