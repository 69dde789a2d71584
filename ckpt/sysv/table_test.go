package sysv

import (
	"os"
	"testing"
)

const shmText = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n" +
	"      4660          7  1600                 20536   192   193      2    10    11    12    13          1          2          3                  4096                     0\n" +
	"-559038737 1073741824   644                     1     0     0      0 4294967295 0 0 0 0 0 9 0 0\n"

const semText = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n" +
	"         0          3   600         17    10    11    12    13         14         15\n"

const msgText = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n" +
	"        -1          4   622         100          2    21    22    10    11    12    13         14         15         16\n"

func TestParse(t *testing.T) {
	shm, err := ParseShm([]byte(shmText))
	want := Shm{Perm{7, 4660, 0o1600, 10, 11, 12, 13}, 20536, 192, 193, 2, 3}
	if err != nil || len(shm) != 2 || shm[0] != want || shm[1].Key != -559038737 || shm[1].UID != 1<<32-1 || shm[1].CTime != 9 {
		t.Errorf("%+v, %v", shm, err)
	}
	sem, err := ParseSem([]byte(semText))
	if want := (Sem{Perm{3, 0, 0o600, 10, 11, 12, 13}, 17, 14, 15}); err != nil || len(sem) != 1 || sem[0] != want {
		t.Errorf("%+v, %v", sem, err)
	}
	msg, err := ParseMsg([]byte(msgText))
	if want := (Msg{Perm{4, -1, 0o622, 10, 11, 12, 13}, 100, 2, 21, 22, 14, 15, 16}); err != nil || len(msg) != 1 || msg[0] != want {
		t.Errorf("%+v, %v", msg, err)
	}
	for _, s := range []string{"title\n1 2 3\n", "title\n0 -1 600 1 1 1 1 1 1 1 1 1 1 1\n", "title\n0 1 800 1 1 1 1 1 1 1 1 1 1 1\n"} {
		if _, err := ParseShm([]byte(s)); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestMapped(t *testing.T) {
	if id, key, ok := Mapped("/SYSVdeadbeef", 7, true, true); id != 7 || uint32(key) != 0xdeadbeef || !ok {
		t.Errorf("%d %#x %v", id, key, ok)
	}
	for _, c := range []struct {
		path            string
		ino             uint64
		shared, deleted bool
	}{{"/SYSVdeadbeef", 7, false, true}, {"/SYSVdeadbeef", 7, true, false}, {"/SYSVdeadbee", 7, true, true}, {"/SYSVdeadbeeg", 7, true, true},
		{"/x/SYSVdeadbeef", 7, true, true}, {"/SYSVdeadbeef", 1 << 31, true, true}} {
		if _, _, ok := Mapped(c.path, c.ino, c.shared, c.deleted); ok {
			t.Errorf("%+v is taken", c)
		}
	}
}

func TestPack(t *testing.T) {
	all := []Message{{1, []byte("one")}, {1 << 40, nil}, {3, make([]byte, 5000)}}
	b := Pack(all)
	got, err := Unpack(b, 3)
	if err != nil || len(got) != 3 || got[0].Type != 1 || string(got[0].Text) != "one" || got[1].Type != 1<<40 || len(got[1].Text) != 0 || len(got[2].Text) != 5000 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{b[:len(b)-1], b[:10], Pack([]Message{{0, nil}})} {
		if _, err := Unpack(bad, 3); err == nil {
			t.Errorf("%d bytes are taken", len(bad))
		}
	}
	if _, err := Unpack(b, 2); err == nil {
		t.Error("three messages are taken for two")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(Pack([]Message{{1, []byte("one")}, {2, nil}}), 2)
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		all, err := Unpack(b, n)
		if err == nil && string(Pack(all)) != string(b) {
			t.Errorf("%q unpacked is %+v", b, all)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{shmText, semText, msgText} {
		f.Add([]byte(s))
		f.Add([]byte(s[:len(s)-50]))
	}
	for _, name := range []string{"shm", "sem", "msg"} {
		if b, err := os.ReadFile("/proc/sysvipc/" + name); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		shm, _ := ParseShm(b)
		for _, s := range shm {
			if s.ID < 0 {
				t.Errorf("%+v of %q", s, b)
			}
		}
		sem, _ := ParseSem(b)
		for _, s := range sem {
			if s.ID < 0 || s.N < 0 {
				t.Errorf("%+v of %q", s, b)
			}
		}
		_, _ = ParseMsg(b)
	})
}

// TestRead reads what this machine has.
func TestRead(t *testing.T) {
	for _, f := range []func() (int, error){
		func() (int, error) { l, err := ReadShm(); return len(l), err },
		func() (int, error) { l, err := ReadSem(); return len(l), err },
		func() (int, error) { l, err := ReadMsg(); return len(l), err },
	} {
		if _, err := f(); err != nil {
			t.Error(err)
		}
	}
}
