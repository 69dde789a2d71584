package fusefs_test

import (
	"strings"
	"testing"
)

// TestTemplate turns a template on and off, and drops it in every other way.
func TestTemplate(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > /dev/null")
	name := m.images()[0]
	at := "$MNT/images/" + name + "/"
	says := func(want string) {
		t.Helper()
		if got := m.ok(0, "cat "+at+"template; stat -c %s "+at+"template"); !strings.HasPrefix(got, want) {
			t.Errorf("says %q, want %q", got, want)
		}
	}
	info := func(want string) {
		t.Helper()
		if got := m.ok(0, "grep template "+at+"info"); !strings.Contains(got, want) {
			t.Errorf("info says %q, want %q", got, want)
		}
	}
	says("off\n4\n")
	info(" 0\n")
	if got := m.ok(0, "ls "+at); strings.Contains(got, "template") {
		t.Errorf("it is listed: %s", got)
	}
	m.fails(0, "echo perhaps > "+at+"template", "Invalid argument")
	m.fails(0, "chmod 777 "+at+"template", "not permitted")
	m.ok(0, "echo off > "+at+"template")
	m.set("template-errno", 12) // ENOMEM
	m.fails(0, "echo on > "+at+"template", "Cannot allocate memory")
	says("off\n")
	m.set("template-errno", 0)

	m.ok(0, "echo on > "+at+"template")
	says("on, takes 3 MiB of memory in process 4321\n")
	info(" 3145728\n")
	m.ok(0, "echo on > "+at+"template") // it is
	if n := m.events("template"); n != 2 {
		t.Errorf("made %d times", n)
	}
	for i, line := range []string{"cp " + at + "image $MNT/restore/a", "cat " + at + "image > $MNT/restore/b"} {
		m.ok(0, line)
		if n := m.events("shared"); n != i+1 {
			t.Errorf("%d restores have used the template", n)
		}
	}
	m.set("template-gone", 1)
	says("off\n")
	m.ok(0, "cp "+at+"image $MNT/restore/c")
	if n := m.events("shared"); n != 2 {
		t.Error("used a template that is gone")
	}
	m.set("template-gone", 0)
	m.ok(0, "mv $MNT/images/"+name+" $MNT/images/mine")
	at = "$MNT/images/mine/"
	says("on, ")
	m.ok(0, "echo off > "+at+"template")
	says("off\n")
	if n := m.events("drop"); n != 1 {
		t.Errorf("dropped %d times", n)
	}
	m.ok(0, "cp "+at+"image $MNT/restore/d")
	if n := m.events("shared"); n != 2 {
		t.Error("used a template that was dropped")
	}

	m.ok(0, "echo on > "+at+"template; rm -r $MNT/images/mine")
	if n := m.events("drop"); n != 2 {
		t.Error("a template outlives its image")
	}
	m.set("template-delay", 1000)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > /dev/null")
	at = "$MNT/images/" + m.images()[0] + "/"
	m.ok(0, "echo on > "+at+"template & sleep 0.3; cat "+at+"template; rm -r "+strings.TrimSuffix(at, "/")+"; wait $! && exit 2; exit 0")
	if n := m.events("drop"); n != 3 {
		t.Error("a template is kept that was made of an image that was removed meanwhile")
	}
}

// TestTemplateStays removes old images: one with a template stays.
func TestTemplateStays(t *testing.T) {
	m := mountKeeping(t, 1)
	pid := target(t)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > /dev/null")
	name := m.images()[0]
	m.ok(0, "echo on > $MNT/images/"+name+"/template")
	for range 3 {
		m.ok(pid, "cat $MNT/ckpt/$PID/image > /dev/null")
	}
	eventually(t, "the others to go", func() bool { return len(m.images()) == 2 })
	m.ok(0, "echo off > $MNT/images/"+name+"/template")
	m.ok(pid, "cat $MNT/ckpt/$PID/image > /dev/null")
	eventually(t, "it to go as well", func() bool { return len(m.images()) == 1 && m.images()[0] != name })
}
