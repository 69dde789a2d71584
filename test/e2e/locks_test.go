package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// outsider starts a process that is no part of any tree, and returns what ends it.
func outsider(t *testing.T, argv ...string) (pid int, end func()) {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = c.Process.Kill()
			_ = c.Wait() // it was killed
		}
	}
	t.Cleanup(end)
	return c.Process.Pid, end
}

// TestFlock carries flock(1) and what it runs through a restore: nobody else gets the lock. While
// somebody else has it there is no restore.
func TestFlock(t *testing.T) {
	dir := harness.TempDir(t)
	file := filepath.Join(dir, "lock")
	flock := harness.Tool(t, "flock")
	free := func() bool { return harness.Run(t, flock, "-n", file, "true").Code == 0 }
	for _, args := range [][]string{{file, harness.Tool(t, "sleep"), "1000"}, {"-s", "--no-fork", file, harness.Tool(t, "sleep"), "1000"}} {
		r := harness.StartCommand(t, dir, append([]string{flock}, args...)...)
		harness.Eventually(t, "locked", func() bool { return !free() })
		image := r.Dump()
		got := fails(t, []string{harness.Binary(), "restore", image}, "pid ", "is in use by", "still holds its lock of "+file)
		if got.Code == 0 {
			t.Error(got)
		}
		r.Kill()
		if !free() {
			t.Fatal("the lock outlives its holder")
		}
		other, end := outsider(t, flock, "--no-fork", file, "sleep", "1000")
		harness.Eventually(t, "locked by another", func() bool { return !free() })
		fails(t, []string{harness.Binary(), "restore", image}, "fd 3: "+file, "flock(2) lock, which cannot be taken again", "pid "+itoa(other)+" (sleep)", "end that process")
		if s := harness.State(r.PID); s != 0 {
			t.Fatalf("a refused restore left pid %d in state %c", r.PID, s)
		}
		end()
		r.Restore(image)
		if free() {
			t.Error("the restored flock does not hold its lock")
		}
		r.Kill()
	}
}

// TestLockTaken refuses to restore what holds locks of fcntl(2) while another process holds one
// that excludes them, and a lease while the file is open elsewhere.
func TestLockTaken(t *testing.T) {
	r := harness.Start(t, "locks")
	image := r.Dump("--kill")
	r.WaitGone()
	f, err := os.OpenFile(filepath.Join(r.Dir, "file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	me := "pid " + itoa(os.Getpid()) + " ("
	for _, c := range []struct {
		cmd, typ   int
		start, len int64
		words      []string
	}{
		{unix.F_SETLK, unix.F_RDLCK, 14, 100, []string{"an exclusive lock of F_SETLK on bytes 5 to 14", me}},
		{unix.F_SETLK, unix.F_WRLCK, 1 << 40, 1, []string{"a shared lock of F_SETLK from byte 100 on", me}},
		{unix.F_OFD_SETLK, unix.F_WRLCK, 41, 1, []string{"an exclusive lock of F_OFD_SETLK on bytes 40 to 41", me}},
	} {
		l := unix.Flock_t{Type: int16(c.typ), Start: c.start, Len: c.len}
		if err := unix.FcntlFlock(f.Fd(), c.cmd, &l); err != nil {
			t.Fatal(err)
		}
		fails(t, []string{harness.Binary(), "restore", image}, append(c.words, "holds a lock that excludes it", filepath.Join(r.Dir, "file"))...)
		l.Type = unix.F_UNLCK
		if err := unix.FcntlFlock(f.Fd(), c.cmd, &l); err != nil {
			t.Fatal(err)
		}
	}
	r.Restore(image)
	r.Pass(true)

	r = harness.Start(t, "leases")
	image = r.Dump("--kill")
	r.WaitGone()
	g, err := os.Open(filepath.Join(r.Dir, "writes"))
	if err != nil {
		t.Fatal(err)
	}
	fails(t, []string{harness.Binary(), "restore", image}, "an exclusive lease, which cannot be taken again", me, "has the file open")
	g.Close()
	r.Restore(image)
	r.Pass(true)
}

// TestOwnerOutside: SIGIO for a process outside the tree goes to that very process or to none.
func TestOwnerOutside(t *testing.T) {
	for _, stays := range []bool{true, false} {
		pid, end := outsider(t, "sleep", "1000")
		r := harness.Start(t, "owners", itoa(pid))
		image := r.Dump("--kill")
		r.WaitGone()
		owner := pid
		if !stays {
			end()
			owner = 0
		}
		if err := os.WriteFile(filepath.Join(r.Dir, "owner"), []byte(itoa(owner)), 0o644); err != nil {
			t.Fatal(err)
		}
		r.Restore(image)
		r.Pass(true)
	}
}

// TestSQLite carries sqlite3 through a restore in the middle of a transaction: its locks keep others
// out until it commits.
func TestSQLite(t *testing.T) {
	for _, journal := range []string{"delete", "wal"} {
		t.Run(journal, func(t *testing.T) { sqliteTransaction(t, journal) })
	}
}

func sqliteTransaction(t *testing.T, journal string) {
	dir := harness.TempDir(t)
	db, sqlite := filepath.Join(dir, "db"), harness.Tool(t, "sqlite3")
	in := filepath.Join(dir, "in")
	if err := unix.Mkfifo(in, 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Must(t, sqlite, db, "pragma journal_mode="+journal+"; create table t(n); insert into t values(1);")
	r := harness.StartCommand(t, dir, "/bin/sh", "-c", "exec '"+sqlite+"' '"+db+"' <>'"+in+"'")
	say := func(s string) {
		t.Helper()
		f, err := os.OpenFile(in, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(s + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	said := func(word string) {
		t.Helper()
		harness.Eventually(t, "sqlite3 to say "+word, func() bool { return strings.Contains(string(read(t, filepath.Join(dir, "out"))), word) })
	}
	say("begin immediate; insert into t values(2); select 'in', 'it';")
	said("in|it")
	locked := func() bool {
		return strings.Contains(harness.Run(t, sqlite, db, "insert into t values(3);").Stderr, "locked")
	}
	if !locked() {
		t.Error("a transaction does not lock")
	}
	image := r.Dump()
	r.Kill()
	r.Restore(image)
	if !locked() {
		t.Error("a restored transaction does not lock")
	}
	say("insert into t values(4); commit; select 'all', group_concat(n) from t;")
	said("all|1,2,4")
	if locked() {
		t.Error("locked after the commit")
	}
	say(".quit")
	r.WaitGone()
}
