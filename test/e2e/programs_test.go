package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// program is one test program and how it may be looked at.
type program struct {
	name  string // of the subtest
	prog  string // of the fixture
	args  []string
	still bool // at rest while it waits: /proc can be compared before and after
}

// programs is everything that has to be seen to work; each also runs without us.
var programs = []program{
	// One piece of state each.
	{"mem_anon", "mem_anon", nil, true},
	{"mem_file", "mem_file", nil, true},
	{"mem_shared", "mem_shared", nil, true},
	{"sysv_shm", "sysvshm", nil, true},
	{"sysv_shm_huge", "sysvshm", []string{"huge"}, true},
	{"sysv_semundo", "semundo", nil, true},
	{"sysv_ipc", "sysvipc", nil, true},
	{"numa", "numa", nil, true},
	{"mem_locked", "mem_locked", nil, true},
	{"mem_locked_future", "mem_locked", []string{"future"}, true},
	{"mem_locked_all", "mem_locked", []string{"all"}, true},
	{"mem_locked_limited", "mem_locked", []string{"limited"}, true},
	{"mem_locked_onfault", "mem_locked", []string{"onfault"}, true},
	{"mem_flags", "mem_flags", nil, true},
	{"mem_hugetlb", "mem_hugetlb", nil, true},
	{"mem_hugeshared", "mem_hugeshared", nil, true},
	{"mem_guard", "mem_guard", nil, true},
	{"mem_guards", "mem_guards", nil, true},
	{"mem_droppable", "mem_droppable", nil, true},
	{"cpu_avx_x87", "cpu", nil, true},
	{"cpu_avx512", "cpu", []string{"avx512"}, true},
	{"cpu_amx", "vector", []string{"amx"}, true},
	{"cpu_pkru", "vector", []string{"pkru"}, true},
	{"signals", "signals", nil, true},
	{"timers", "timers", nil, false},
	{"scribble", "scribble", nil, false},
	{"robust_rseq", "robust", nil, true},
	{"creds_user", "creds", []string{"user"}, true},
	{"creds_caps", "creds", []string{"caps"}, true},
	{"creds_root", "creds", []string{"root"}, true},
	{"limits", "limits", nil, true},
	{"chroot", "chroot", nil, true},
	{"stopped", "stopped", nil, true},
	{"tree", "tree", nil, true},
	{"files_regular", "files", []string{"regular"}, true},
	{"files_directory", "files", []string{"directory"}, true},
	{"files_pipes", "files", []string{"pipes"}, true},
	{"files_packets", "files", []string{"packets"}, false},
	{"files_events", "files", []string{"events"}, true},
	{"files_devices", "files", []string{"devices"}, true},
	{"files_clocks", "clocks", nil, false},
	{"files_pidfd", "pidfd", nil, false},
	{"files_inotify", "inotify", nil, false},
	{"files_proc", "procfiles", nil, false},
	{"unix_pairs", "unixsock", []string{"pairs"}, true},
	{"unix_processes", "unixsock", []string{"processes"}, true},
	{"unix_servers", "unixsock", []string{"servers"}, true},
	{"files_epollaway", "epollaway", nil, true},
	{"inet_listen", "inet", []string{"listen"}, true},
	{"inet_datagram", "inet", []string{"datagram"}, true},
	{"inet_raw", "inet", []string{"raw"}, true},
	{"inet_ended", "inet", []string{"ended"}, true},
	{"inet_connected", "inet", []string{"connected"}, true},
	{"inet_closing", "inet", []string{"closing"}, true},
	{"waiting", "waiting", nil, true},
	{"fanotify", "fanotify", nil, true},
	{"files_mqueue", "mqueue", nil, true},
	{"pty_settings", "pty", []string{"settings"}, false},
	{"pty_jobs", "pty", []string{"jobs"}, false},
	{"uring_plain", "uring", []string{"plain"}, true},
	{"uring_big", "uring", []string{"big"}, true},
	{"uring_noarray", "uring", []string{"noarray"}, true},
	{"uring_single", "uring", []string{"single"}, true},
	{"uring_defer", "uring", []string{"defer"}, true},
	{"uring_coop", "uring", []string{"coop"}, true},
	{"uring_sqpoll", "uring", []string{"sqpoll"}, false},
	{"uring_iopoll", "uring", []string{"iopoll"}, true},
	{"uring_registered", "uring", []string{"registered"}, false},
	{"uring_shared", "uring", []string{"shared"}, false},
	{"uring_thread", "uring", []string{"thread"}, true},
	{"uring_waiting", "uring", []string{"waiting"}, true},
	{"unix_chroot", "unixsock", []string{"servers", "chroot"}, true},
	{"unix_flight", "unixsock", []string{"flight"}, true},
	{"files_owner", "files", []string{"owner"}, true},
	{"files_all", "files", nil, true},
	{"aio", "aio", nil, true},
	{"aio_busy", "aio", []string{"busy"}, false}, // the offset and the count of its files move on
	{"packet", "packet", nil, true},
	{"locks", "locks", nil, true},
	{"leases", "leases", nil, true},
	{"owners", "owners", nil, true},
	{"files_writers", "writers", nil, false},
	{"share", "share", nil, true},
	{"tables", "tables", nil, true},
	{"tables_late", "tables", []string{"late"}, true},
	{"deleted", "deleted", nil, false},
	{"deleted_linked", "otherlink", nil, false}, // /proc shows the other name
	{"gone", "gone", nil, true},
	{"gone_linked", "gone", []string{"linked"}, false}, // maps shows the other name
	{"gone_exe", "gone_exe", []string{"deleted"}, true},
	{"gone_exe_replaced", "gone_exe", []string{"replaced"}, true},
	{"gone_exe_linked", "gone_exe", []string{"linked"}, false},
	{"blocked", "blocked", nil, true},
	{"handler", "handler", nil, false},
	{"handler_alt", "handler", []string{"alt"}, false},
	{"lazy_locks", "lazylocks", nil, false},
	{"lonely", "lonely", nil, false},
	// Real programs.
	{"counter", "counter", nil, false},
	{"threads16", "threads", []string{"16"}, false},
	{"go", "godaemon", nil, false},
	{"go_http", "gohttp", nil, false},
	{"python", "daemon.py", nil, false},
	{"python_multi", "multi.py", nil, false},
	{"python_asyncio", "asyncio_unix.py", nil, false},
	{"python_pool", "pool.py", nil, false},
	{"node", "server.js", nil, false},
	{"java", "Server.java", nil, false},
	{"bash", "pipeline.sh", nil, false},
	{"perl", "work.pl", nil, false},
	{"ring50", "ring", []string{"50"}, false},
	{"many", "many", nil, false},
	{"vforks", "vforks", nil, false},
	{"ram_huge", "ram", []string{"128"}, false},
	{"ram_small", "ram", []string{"128", "small"}, false},
}

// each runs f as a subtest for every program.
func each(t *testing.T, f func(t *testing.T, p program)) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) { f(t, p) })
	}
}

// TestPlain runs every program without ckptfs: it proves the programs.
func TestPlain(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		t.Parallel()
		harness.Start(t, p.prog, p.args...).Pass(false)
	})
}

// TestLeaveRunning takes checkpoints of programs that go on: nothing of them has changed, and
// they still pass.
func TestLeaveRunning(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		r := harness.Start(t, p.prog, p.args...)
		before := look(p, r)
		for range 3 {
			r.Dump()
			r.Alive()
		}
		if p.still {
			r.Same(before, "after a checkpoint that leaves it running")
		}
		r.Pass(false)
	})
}

// TestRestore kills the programs after a checkpoint, brings them back, does that once more
// with `dump --kill`, and lets them assert on themselves.
func TestRestore(t *testing.T) {
	each(t, func(t *testing.T, p program) {
		r := harness.Start(t, p.prog, p.args...)
		before := look(p, r)
		image := r.Dump()
		r.Kill()
		r.Restore(image)
		if p.still {
			r.Same(before, "after a restore")
		}
		r.Alive()
		image = r.Dump("--kill")
		r.WaitGone()
		r.Restore(image)
		if p.still {
			r.Same(before, "after a second restore")
		}
		r.Pass(true)
	})
}

// TestEarlierMoment lets a program end by itself after a checkpoint and then brings the
// earlier moment back, twice.
func TestEarlierMoment(t *testing.T) {
	r := harness.Start(t, "signals")
	image := r.Dump()
	r.Pass(false)
	for range 2 {
		r.Restore(image)
		r.Pass(true)
	}
}

// TestGenerations carries programs through eight checkpoints, kills and restores in a row.
func TestGenerations(t *testing.T) {
	for _, p := range []program{
		{name: "python", prog: "daemon.py"},
		{name: "threads", prog: "threads", args: []string{"16"}},
		{name: "break", prog: "brk"},
		{name: "go", prog: "godaemon"},
	} {
		t.Run(p.name, func(t *testing.T) {
			r := harness.Start(t, p.prog, p.args...)
			for n := range 8 {
				var image string
				if n%2 == 0 {
					image = r.Dump()
					r.Alive()
					r.Kill()
				} else {
					image = r.Dump("--kill")
					r.WaitGone()
				}
				r.Restore(image)
				r.Alive()
			}
			r.Pass(true)
		})
	}
}

// TestSparse takes a checkpoint of a program whose memory is mostly untouched: pages of zeros
// are not stored.
func TestSparse(t *testing.T) {
	r := harness.Start(t, "mem_anon")
	fi, err := os.Stat(r.Dump())
	if err != nil {
		t.Fatal(err)
	}
	const written = 8 << 20 // what the program writes: less than that
	if fi.Size() > written+4<<20 {
		t.Errorf("the image of a program that wrote %d bytes has %d", written, fi.Size())
	}
	r.Pass(false)
}

// TestDumpStop leaves the tree stopped, for kill -CONT to go on.
func TestDumpStop(t *testing.T) {
	r := harness.Start(t, "ring", "5")
	image := r.Dump("--stop")
	for _, pid := range r.Tree() {
		harness.Eventually(t, "stopped", func() bool { return harness.State(pid) == 'T' })
	}
	for _, pid := range r.Tree() {
		signal(t, pid, "CONT")
	}
	r.Pass(false)
	r.Restore(image)
	r.Pass(true)
}

// TestStoppedRoot restores a program that was stopped as stopped.
func TestStoppedRoot(t *testing.T) {
	r := harness.Start(t, "counter")
	signal(t, r.PID, "STOP")
	harness.Eventually(t, "stopped", func() bool { return harness.State(r.PID) == 'T' })
	image := r.Dump()
	if s := harness.State(r.PID); s != 'T' {
		t.Errorf("state after the checkpoint is %q", s)
	}
	r.Kill()
	r.Restore(image)
	if s := harness.State(r.PID); s != 'T' {
		t.Errorf("state after the restore is %q", s)
	}
	signal(t, r.PID, "CONT")
	r.Pass(true)
}

// TestPIDFile restores with --pidfile and follows the program with --wait.
func TestPIDFile(t *testing.T) {
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, "/bin/sh", "-c", "echo > ready; sleep 0.7 & wait; exit 7")
	r.WaitReady()
	image := r.Dump("--kill")
	r.WaitGone()
	pidfile := filepath.Join(dir, "pidfile")
	got := harness.Run(t, harness.Binary(), "restore", image, "--pidfile", pidfile, "--wait")
	if got.Code != 7 {
		t.Errorf("restore --wait of a program that exits with 7: %v", got)
	}
	b, err := os.ReadFile(pidfile)
	if err != nil || string(b) != itoa(r.PID)+"\n" {
		t.Errorf("pidfile holds %q, %v, not %d", b, err, r.PID)
	}
}

func look(p program, r *harness.Program) harness.Outside {
	if !p.still {
		return nil
	}
	return r.Look()
}

// TestNoPriority takes a checkpoint without CAP_SYS_NICE: nobody is hurried, and it works.
func TestNoPriority(t *testing.T) {
	r := harness.Start(t, "threads", "4")
	image := filepath.Join(t.TempDir(), "image")
	without := []string{"setpriv", "--bounding-set=-sys_nice", harness.Binary()}
	got := harness.Must(t, append(without, "check")...)
	if !strings.Contains(got.Stdout, "missing  lent priority") {
		t.Errorf("check says: %s", got.Stdout)
	}
	harness.Must(t, append(without, "dump", itoa(r.PID), "-o", image)...)
	r.Alive()
	r.Kill()
	r.Restore(image)
	r.Pass(true)
}
