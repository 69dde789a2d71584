package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store/chunk"
	"github.com/ckptfs/ckptfs/store/disk"
	"github.com/ckptfs/ckptfs/store/layout"
)

// The test binary runs itself as the process that is killed, or that holds the lock.
const helperEnv = "CKPTFS_STORE_HELPER"

func TestMain(m *testing.M) {
	if args := os.Getenv(helperEnv); args != "" {
		if err := helper(strings.Split(args, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func helperCmd(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+strings.Join(args, "\n"))
	cmd.Stderr = os.Stderr
	return cmd
}

// helperOptions are those of the stores that helpers work on.
func helperOptions(sealed bool) Options {
	o := Options{PackSize: 256 << 10}
	if sealed {
		var err error
		if o.Key, err = ReadKeyFile("testdata/format3/key"); err != nil {
			panic(err) // it is in the tree
		}
	}
	return o
}

// helper works on the store until it is killed: mode, folder, seed.
func helper(args []string) error {
	if args[0] == "machine" {
		return helperMachine(args[1:])
	}
	s, err := Open(args[1], helperOptions(args[0] == "work sealed"))
	if err != nil {
		return err
	}
	if args[0] == "hold" {
		fmt.Println("held")
		time.Sleep(time.Minute)
		return nil
	}
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return work(s, seed, os.Stdout)
}

// soakRounds is how often something happens: n times, or as often as make soak says.
func soakRounds(n int) int {
	if more, err := strconv.Atoi(os.Getenv("CKPTFS_SOAK")); err == nil {
		return more
	}
	return n
}

// TestKill kills a process that works on a store at random moments. Afterwards the store
// is clean, every listed image is what it was, and what was confirmed is true.
func TestKill(t *testing.T) {
	rounds := soakRounds(30)
	dir := t.TempDir()
	base := uint64(time.Now().UnixNano())
	t.Logf("seeds %d to %d", base, base+uint64(rounds)-1)
	images, junk := 0, 0
	j := journal{}
	for i := range rounds {
		seed := base + uint64(i)
		rnd := rand.New(rand.NewPCG(seed, 5))
		j.read(killHelper(t, dir, seed, time.Duration(rnd.Int64N(int64(250*time.Millisecond)))))
		if i%5 == 4 {
			os.RemoveAll(filepath.Join(dir, layout.Index)) // the packs alone must do
		}
		junk += countTemps(t, dir)
		s := open(t, dir, helperOptions(false))
		n, err := j.check(s)
		if err != nil {
			t.Fatalf("after the kill with seed %d: %v", seed, err)
		}
		images += n
		if i%7 == 6 {
			gc(t, s)
			wantClean(t, s)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills, %d images compared, %d unfinished files found and removed", rounds, images, junk)
}

// countTemps counts unfinished files; a folder may be missing.
func countTemps(t *testing.T, dir string) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*", "*"+disk.TmpExt))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// killHelper lets a helper work for a while and returns what it said.
func killHelper(t *testing.T, dir string, seed uint64, after time.Duration) []string {
	t.Helper()
	h := startHelper(t, "work", dir, fmt.Sprint(seed))
	select {
	case <-h.ready:
	case <-h.done:
		t.Errorf("seed %d: the helper did not start", seed)
	}
	time.Sleep(after)
	err := h.kill()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("seed %d: the helper ended by itself: %v\n%s", seed, err, h.stderr.String())
	}
	return h.said
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	cmd := helperCmd("hold", dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	var le *LockedError
	if _, err := Open(dir, Options{}); !errors.As(err, &le) || le.PID != cmd.Process.Pid {
		t.Errorf("%v, want pid %d", err, cmd.Process.Pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	open(t, dir, Options{}) // a dead holder is no problem
}

func TestLockedHere(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	var le *LockedError
	if _, err := Open(s.dir, Options{}); !errors.As(err, &le) || le.PID != os.Getpid() {
		t.Error(err)
	}
}

// tinyDisk mounts a tmpfs of n bytes.
func tinyDisk(t *testing.T, n int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Log("not root: a disk cannot be mounted, this test does nothing here")
		return ""
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

// fillDisk leaves not a byte, and returns the file that has them.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "..fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	return f.Name()
}

// TestDiskFull fills the disk in an ingest: it fails with ENOSPC, what was there stays,
// the space comes back and the store goes on working.
func TestDiskFull(t *testing.T) {
	dir := tinyDisk(t, 6<<20)
	if dir == "" {
		return
	}
	s := open(t, dir, Options{PackSize: 512 << 10})
	small := testImage(1, 60)
	ingest(t, s, "small", small)
	used := packBytes(t, s)
	rnd := rand.New(rand.NewPCG(1, 1))
	for round := range 3 {
		in, err := s.Begin(context.Background(), "big")
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			c := make([]byte, 64<<10)
			fillRandom(rnd, c)
			if err = in.Put(chunk.Sum(c), c); err != nil {
				break
			}
		}
		if err == nil {
			err = in.Commit()
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := in.Abort(); err != nil {
			t.Error(err)
		}
		if n := packBytes(t, s); n != used {
			t.Errorf("%d bytes in packs, %d before", n, used)
		}
		wantImage(t, s, "small", small)
	}
	wantClean(t, s)
	more := testImage(2, 30)
	ingest(t, s, "more", more)
	wantImage(t, s, "more", more)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	wantClean(t, s)
	s.Close()
}

// TestDiskFullSmall fills what the packs leave: records and index hit the end.
func TestDiskFullSmall(t *testing.T) {
	dir := tinyDisk(t, 2<<20)
	if dir == "" {
		return
	}
	s := open(t, dir, Options{})
	chunks := testImage(1, 20)
	ingest(t, s, "a", chunks)
	fill := fillDisk(t, dir)
	in, err := s.Begin(context.Background(), "b")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks {
		if err := in.Put(chunk.Sum(c), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Commit(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("commit on a full disk: %v", err)
	}
	if err := s.Rename("a", "c"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("rename on a full disk: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close on a full disk: %v", err)
	}
	os.Remove(fill)
	s = open(t, dir, Options{})
	wantImage(t, s, "a", chunks)
	wantClean(t, s)
	s.Close()
}

// TestFreeFullDisk: where not a byte is left, old images can be removed and their space freed.
func TestFreeFullDisk(t *testing.T) {
	dir := tinyDisk(t, 8<<20)
	if dir == "" {
		return
	}
	for _, how := range []string{"prune", "gc"} {
		s := open(t, dir, Options{})
		a, b := testImage(1, 30), testImage(2, 30)
		ingest(t, s, "a", a)
		ingest(t, s, "b", b)
		fill := fillDisk(t, dir)
		var err error
		if how == "prune" {
			_, err = s.Prune(context.Background(), Policy{MaxSize: 1, KeepLast: 1})
		} else {
			err = s.Remove("a")
		}
		if err != nil {
			t.Fatalf("%s on a full disk: %v", how, err)
		}
		r, err := s.GC(context.Background())
		if err != nil || r.Freed == 0 {
			t.Fatalf("GC on a full disk after %s: %v, %+v", how, err, r)
		}
		if names, err := s.List(); err != nil || len(names) != 1 || names[0].Name != "b" {
			t.Errorf("after %s: %v", how, names)
		}
		wantImage(t, s, "b", b)
		wantClean(t, s)
		if err := errors.Join(s.Remove("b"), os.Remove(fill), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadOnlyDisk(t *testing.T) {
	dir := tinyDisk(t, 4<<20)
	if dir == "" {
		return
	}
	remount := func(flags uintptr) {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, "size=4m"); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir, Options{})
	ingest(t, s, "a", testImage(1, 20))
	s.Close()
	remount(syscall.MS_RDONLY)
	if _, err := Open(dir, Options{}); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
	remount(0)
	s = open(t, dir, Options{})
	wantImage(t, s, "a", testImage(1, 20))
	s.Close()
}

// TestNoPermission opens a store as a user who may not.
func TestNoPermission(t *testing.T) {
	if os.Getuid() != 0 {
		dir := t.TempDir()
		os.Chmod(dir, 0)
		defer os.Chmod(dir, 0o700)
		if _, err := Open(filepath.Join(dir, "s"), Options{}); !errors.Is(err, syscall.EACCES) {
			t.Error(err)
		}
		return
	}
	s := open(t, t.TempDir(), Options{})
	dir := s.dir
	s.Close()
	cmd := helperCmd("hold", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var msg bytes.Buffer
	cmd.Stderr = &msg
	if err := cmd.Run(); err == nil || !strings.Contains(msg.String(), "permission denied") || !strings.Contains(msg.String(), dir) {
		t.Errorf("%v: %s", err, msg.String())
	}
}
