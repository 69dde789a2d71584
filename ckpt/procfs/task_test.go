package procfs

import (
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const statTail = " S 7006 6956 2958 34817 -1 4194304 113 0 0 0 11 22 0 0 20 -5 3 0 128832 10973184 2320 18446744073709551615 94835197267968 94835197269061 140727604073552 0 0 0 0 6 0 1 0 0 17 1 10 2 0 0 0 94835197279696 94835197280360 94836032737280 140727604079279 140727604079294 140727604079294 140727604080617 256\n"

func TestParseStat(t *testing.T) {
	want := Stat{PID: 7007, State: 'S', PPID: 7006, PGID: 6956, SID: 2958, TTY: 34817, TPGID: -1, Flags: 4194304,
		UTime: 11, STime: 22, Priority: 20, Nice: -5, NumThreads: 3, StartTime: 128832, RSS: 2320,
		StartCode: 94835197267968, EndCode: 94835197269061, StartStack: 140727604073552, ExitSignal: 17, Processor: 1,
		RTPriority: 10, Policy: 2, StartData: 94835197279696, EndData: 94835197280360, StartBrk: 94836032737280,
		ArgStart: 140727604079279, ArgEnd: 140727604079294, EnvStart: 140727604079294, EnvEnd: 140727604080617, ExitCode: 256}
	for _, comm := range []string{"hp_target", "", "we (i)rd)\n x", ") R 1 1", "(((", "a b"} {
		want.Comm = comm
		got, err := ParseStat([]byte("7007 (" + comm + ")" + statTail))
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v\nwant %+v", comm, got, err, want)
		}
	}
	if _, err := ParseStat([]byte("7007 (x)" + strings.TrimSuffix(statTail, "\n") + " 1 2\n")); err != nil {
		t.Errorf("fields that a newer kernel adds: %v", err)
	}
}

func TestParseStatErrors(t *testing.T) {
	for _, text := range []string{
		"", "1", "1 (", "1 )", "1 ()", ")(", "(x)" + statTail, " (x)" + statTail, "1(x)" + statTail, "x (x)" + statTail,
		"1 (x)" + strings.Replace(statTail, "7006", "70o6", 1),
		"1 (x)" + strings.Replace(statTail, " S ", " SS ", 1),
		"1 (x)" + strings.Replace(statTail, " 256", "", 1),
		"1 (x)" + strings.Replace(statTail, "4194304", "4294967296", 1),
		"1 (x)" + strings.Replace(statTail, "94835197267968", "-1", 1),
	} {
		if got, err := ParseStat([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, got)
		}
	}
}

func TestParseStatus(t *testing.T) {
	s, err := ParseStatus(read(t, "status.txt"))
	if err != nil {
		t.Fatal(err)
	}
	pid := s.Pid
	if pid == 0 || s.PPid == 0 {
		t.Errorf("pid %d, ppid %d", pid, s.PPid)
	}
	want := Status{Name: "hp_target", Umask: 0o22, State: 'S', Tgid: pid, Pid: pid, PPid: s.PPid,
		NStgid: []int{pid}, NSpid: []int{pid}, NSpgid: s.NSpgid, NSsid: s.NSsid,
		VmRSS: s.VmRSS, VmLck: 4 << 10, THPEnabled: true, UntagMask: 1<<64 - 1, Threads: 1, SigQMax: s.SigQMax, SigIgn: s.SigIgn,
		CapPrm: 0x1fffeffffff, CapEff: 0x1fffeffffff, CapBnd: 0x1fffeffffff,
		SpeculationStoreBypass: "vulnerable", SpeculationIndirectBranch: "always enabled", MemsAllowed: "0"}
	if !reflect.DeepEqual(s, want) || s.VmRSS == 0 {
		t.Errorf("got %+v\nwant %+v", s, want)
	}
}

const statusHead = "Name:\tx\nState:\tS (sleeping)\nTgid:\t5\nPid:\t6\n"

func TestParseStatusLines(t *testing.T) {
	head := Status{Name: "x", State: 'S', Tgid: 5, Pid: 6}
	for _, c := range []struct {
		line string
		set  func(*Status)
	}{
		{"Uid:\t0\t1000\t4294967295\t3", func(s *Status) { s.Uid = [4]uint32{0, 1000, 4294967295, 3} }},
		{"Gid:\t1\t2\t3\t4", func(s *Status) { s.Gid = [4]uint32{1, 2, 3, 4} }},
		{"Groups:\t77 1234 ", func(s *Status) { s.Groups = []uint32{77, 1234} }},
		{"Groups:\t ", func(*Status) {}},
		{"NSpid:\t70\t2", func(s *Status) { s.NSpid = []int{70, 2} }},
		{"SigQ:\t3/96365", func(s *Status) { s.SigQ, s.SigQMax = 3, 96365 }},
		{"SigPnd:\t0000000000000200", func(s *Status) { s.SigPnd = 0x200 }},
		{"ShdPnd:\t8000000000000000", func(s *Status) { s.ShdPnd = 1 << 63 }},
		{"CapAmb:\t0000000000000400", func(s *Status) { s.CapAmb = 0x400 }},
		{"NoNewPrivs:\t1", func(s *Status) { s.NoNewPrivs = true }},
		{"Seccomp:\t2", func(s *Status) { s.Seccomp = 2 }},
		{"Seccomp_filters:\t4", func(s *Status) { s.SeccompFilters = 4 }},
		{"x86_Thread_features:\tshstk wrss ", func(s *Status) { s.X86ThreadFeatures = "shstk wrss" }},
		{"VmSwap:\t      12 kB", func(s *Status) { s.VmSwap = 12288 }},
		{"Kthread:\t1", func(s *Status) { s.Kthread = true }},
		{"TracerPid:\t9", func(s *Status) { s.TracerPid = 9 }},
		{"NewKey:\tanything", func(*Status) {}},
		{"no key", func(*Status) {}},
	} {
		want := head
		c.set(&want)
		got, err := ParseStatus([]byte(statusHead + c.line + "\n"))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v\nwant %+v", c.line, got, err, want)
		}
	}
	got, err := ParseStatus([]byte("Name:\twe (i)rd)\\n\\\\n x\nState:\tZ\nTgid:\t1\nPid:\t1\n"))
	if err != nil || got.Name != "we (i)rd)\n\\n x" {
		t.Errorf("escaped name: %q, %v", got.Name, err)
	}
}

func TestParseStatusErrors(t *testing.T) {
	for _, text := range []string{
		"", "Name:\tx\n", "Name:\tx\nState:\t\nTgid:\t1\nPid:\t1\n",
		statusHead + "Uid:\t0\t0\t0\n",
		statusHead + "Uid:\t0\t0\t0\t0\t0\n",
		statusHead + "Gid:\t0\t0\t0\t4294967296\n",
		statusHead + "Groups:\ta\n",
		statusHead + "SigQ:\t3\n",
		statusHead + "SigBlk:\txyz\n",
		statusHead + "CapEff:\t00000000000000000\t\n",
		statusHead + "NoNewPrivs:\t2\n",
		statusHead + "VmRSS:\t5 MB\n",
		statusHead + "Umask:\t0088\n",
	} {
		if got, err := ParseStatus([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, got)
		}
	}
}

const fdHead = "pos:\t10000\nflags:\t02100001\nmnt_id:\t27\nino:\t9977884\n"

func TestParseFDInfo(t *testing.T) {
	head := FDInfo{Pos: 10000, Flags: 0o2100001, MntID: 27, Ino: 9977884}
	for _, c := range []struct {
		text string
		set  func(*FDInfo)
	}{
		{"", func(*FDInfo) {}},
		{"lock:\t1: FLOCK  ADVISORY  WRITE 6056 fe:00:9977884 0 EOF\nlock:\t2: POSIX  ADVISORY  WRITE 6056 fe:00:9977884 2 6\n", func(f *FDInfo) {
			f.Locks = []string{"lock:\t1: FLOCK  ADVISORY  WRITE 6056 fe:00:9977884 0 EOF", "lock:\t2: POSIX  ADVISORY  WRITE 6056 fe:00:9977884 2 6"}
		}},
		{"eventfd-count:               1f\neventfd-id: 12\neventfd-semaphore: 1\n", func(f *FDInfo) {
			f.EventFD = &EventFD{Count: 31, ID: 12, Semaphore: true, HasSemaphore: true}
		}},
		{"scm_fds: 12\n", func(f *FDInfo) { f.SCMFDs = 12 }},
		{"eventfd-count: fffffffffffffffe\neventfd-id: 1\n", func(f *FDInfo) {
			f.EventFD = &EventFD{Count: 1<<64 - 2, ID: 1}
		}},
		{"tfd:        5 events:       19 data:     7f4400000005  pos:0 ino:26b9 sdev:f\ntfd:        3 events: 80000019 data:                3  pos:-1 ino:40e sdev:fe00001\n", func(f *FDInfo) {
			f.Epoll = []EpollEntry{{FD: 5, Events: 0x19, Data: 0x7f4400000005, Ino: 0x26b9, Dev: unix.Mkdev(0, 15)},
				{FD: 3, Events: 0x80000019, Data: 3, Pos: -1, Ino: 0x40e, Dev: unix.Mkdev(0xfe, 1)}}
		}},
		{"no_such: 2\nno colon", func(f *FDInfo) { f.Other = []string{"no_such: 2", "no colon"} }},
		{"clockid: 7\nticks: 12\nsettime flags: 03\nit_value: (6, 999894699)\nit_interval: (3, 5)\n", func(f *FDInfo) {
			f.TimerFD = &TimerFD{Clock: 7, Ticks: 12, Flags: 3, Value: 6999894699, Interval: 3000000005}
		}},
		{"sigmask:\t8000000000000200\n", func(f *FDInfo) {
			mask := uint64(1<<63 | 1<<9)
			f.SigMask = &mask
		}},
	} {
		want := head
		c.set(&want)
		got, err := ParseFDInfo([]byte(fdHead + c.text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v\nwant %+v", c.text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "pos:\t0\n", strings.Replace(fdHead, "02100001", "0210000x", 1), strings.Replace(fdHead, "10000\n", "-\n", 1),
		fdHead + "scm_fds: -1\n", fdHead + "eventfd-count: g\n", fdHead + "eventfd-semaphore: 2\n", fdHead + "eventfd-id:\n",
		fdHead + "tfd: 1\n", fdHead + "tfd: x events: 1 data: 1 pos:0 ino:1 sdev:1\n", fdHead + "tfd: 1 events: 1 data: 1 pos:0 ino:1\n",
		fdHead + "it_value: (1, 1000000000)\n", fdHead + "it_interval: 1, 2\n", fdHead + "it_value: (99999999999999, 0)\n", fdHead + "settime flags: 8\n",
		fdHead + "ticks: -1\n", fdHead + "sigmask: x\n",
		fdHead + "tfd: 1 events: 1ffffffff data: 1 pos:0 ino:1 sdev:1\n",
	} {
		if got, err := ParseFDInfo([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, got)
		}
	}
}

func TestParseTimers(t *testing.T) {
	text := "ID: 4\nsignal: 14/0000000000000004\nnotify: signal/pid.6056\nClockID: 1\n" +
		"ID: 3\nsignal: 34/0000000000001234\nnotify: none/pid.6056\nClockID: -6\n" +
		"ID: 1\nsignal: 34/ffffffffffffffff\nnotify: signal/tid.6057\nClockID: 0\n" +
		"ID: 1000000\nsignal: 0/0\nnotify: thread/tid.0\nClockID: 11\n"
	want := []Timer{
		{ID: 4, Signal: 14, SigValue: 4, Clock: 1},
		{ID: 3, Signal: 34, SigValue: 0x1234, Notify: 1, Clock: -6},
		{ID: 1, Signal: 34, SigValue: 1<<64 - 1, Notify: 4, TID: 6057},
		{ID: 1000000, Notify: 6, Clock: 11},
	}
	got, err := ParseTimers([]byte(text))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	for _, bad := range []string{
		"x", "ID: 1\n", "ID: x\n", strings.Replace(text, "signal/pid", "signal/who", 1), strings.Replace(text, "none", "nobody", 1),
		strings.Replace(text, "14/", "14", 1), strings.Replace(text, ".6056", "", 1), strings.Replace(text, "ClockID: 1\n", "", 1),
	} {
		if got, err := ParseTimers([]byte(bad)); err == nil {
			t.Errorf("%q: parsed as %+v", bad, got)
		}
	}
}

func TestParseTimerList(t *testing.T) {
	got, err := ParseTimerList(read(t, "timer_list.txt"))
	if err != nil || len(got) < 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	sleeping := 0
	for _, timer := range got {
		if timer.Function == "hrtimer_wakeup" {
			sleeping++
		}
		if timer.HardNS < timer.SoftNS || timer.SoftNS == 0 || timer.Clock != 0 {
			t.Errorf("%+v", timer)
		}
	}
	if sleeping == 0 {
		t.Error("no sleeping thread")
	}
	text := " clock 5:\nactive timers:\n #0: <00000000cf746b14>, my_timer [a_module], S:01\n # expires at 1795436781820113362-1795436781820163362 nsecs [in -3 to 49997 nsecs]\n"
	want := []HRTimer{{Function: "my_timer [a_module]", SoftNS: 1795436781820113362, HardNS: 1795436781820163362, Clock: 5}}
	if got, err := ParseTimerList([]byte(text)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{" clock x:\n", " #0: what\n", " #0: <0>, f, S:01\n", " #0: <0>, f, S:01\n # expires at 5 nsecs\n"} {
		if got, err := ParseTimerList([]byte(bad)); err == nil {
			t.Errorf("%q: parsed as %+v", bad, got)
		}
	}
}

func TestParseSyscall(t *testing.T) {
	for _, c := range []struct {
		text string
		want Syscall
	}{
		{"running\n", Syscall{Running: true}},
		{"-1 0x7ffdb2d9d2e8 0x7fb059630dd0\n", Syscall{NR: -1, SP: 0x7ffdb2d9d2e8, PC: 0x7fb059630dd0}},
		{"34 0x5640bc0b12a0 0x3e8 0x0 0x7fb059576fa0 0x5640bc0d2000 0xffffffffffffffff 0x7ffdb2d9d2e8 0x7fb059630dd0\n",
			Syscall{NR: 34, Args: [6]uint64{0x5640bc0b12a0, 0x3e8, 0, 0x7fb059576fa0, 0x5640bc0d2000, 1<<64 - 1}, SP: 0x7ffdb2d9d2e8, PC: 0x7fb059630dd0}},
	} {
		if got, err := ParseSyscall([]byte(c.text)); err != nil || got != c.want {
			t.Errorf("%q: got %+v, %v", c.text, got, err)
		}
	}
	for _, text := range []string{"", "walking", "-1", "-1 0x1", "0 0x1 0x2", "1 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0", "0 0xg 0x0 0x0 0x0 0x0 0x0 0x0 0x0"} {
		if got, err := ParseSyscall([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, got)
		}
	}
}

func TestParsePIDs(t *testing.T) {
	for text, want := range map[string][]int{"": nil, "1041 ": {1041}, "7 8 9 \n": {7, 8, 9}} {
		if got, err := ParsePIDs([]byte(text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "1,2", "99999999999", "1\n2"} {
		if got, err := ParsePIDs([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %v", text, got)
		}
	}
}

func TestParseAuxv(t *testing.T) {
	text := make([]byte, 16*4)
	text[0], text[8] = 6, 0
	text[9] = 0x10 // AT_PAGESZ 4096
	text[16], text[24] = 33, 5
	got, err := ParseAuxv(text)
	if want := map[uint64]uint64{6: 4096, 33: 5}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := ParseAuxv(text[:24]); err == nil {
		t.Error("a pair cut in its middle was parsed")
	}
	if got, err := ParseAuxv(nil); err != nil || len(got) != 0 {
		t.Errorf("no auxv: %v, %v", got, err)
	}
}

func TestParseMountInfo(t *testing.T) {
	text := "24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=12334524k,mode=755\n" +
		"27 1 254:0 /sub\\040dir /a\\011b\\134c rw shared:1 master:2 unbindable - ext4 /dev/vda rw,discard\n" +
		"40 31 0:37 / /x rw,relatime - fuse.thing  rw,user_id=0\n" +
		"41 31 259:1048575 net:[4026531840] /y\\043 rw - nsfs n rw\n"
	want := []Mount{
		{ID: 24, Parent: 27, Dev: unix.Mkdev(0, 6), Root: "/", Point: "/dev", FSType: "devtmpfs", Source: "devtmpfs", Options: "rw,relatime", SuperOptions: "rw,size=12334524k,mode=755"},
		{ID: 27, Parent: 1, Dev: unix.Mkdev(254, 0), Root: "/sub dir", Point: "/a\tb\\c", FSType: "ext4", Source: "/dev/vda", Options: "rw", SuperOptions: "rw,discard"},
		{ID: 40, Parent: 31, Dev: unix.Mkdev(0, 37), Root: "/", Point: "/x", FSType: "fuse.thing", Options: "rw,relatime", SuperOptions: "rw,user_id=0"},
		{ID: 41, Parent: 31, Dev: unix.Mkdev(259, 1048575), Root: "net:[4026531840]", Point: "/y#", FSType: "nsfs", Source: "n", Options: "rw", SuperOptions: "rw"},
	}
	got, err := ParseMountInfo([]byte(text))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	for _, bad := range []string{"\n", "1\n", "x 27 0:6 / / rw - a b c\n", "1 27 0-6 / / rw - a b c\n", "1 27 0:6 / / rw a b c\n", "1 27 0:6 / / rw -\n", "1 27 0:6 / /\n"} {
		if got, err := ParseMountInfo([]byte(bad)); err == nil {
			t.Errorf("%q: parsed as %+v", bad, got)
		}
	}
}
