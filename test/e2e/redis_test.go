package e2e

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// redisRun is a redis under a load that goes on by itself, and how often it is checkpointed.
type redisRun struct {
	mib      int // of its memory
	rate     int // updates a second, and as many reads
	loaded   int // checkpoints under load …
	stopped  int // … and then of a redis that has nothing more to do
	every    time.Duration
	restored int // how many images are restored
}

// TestRedis takes checkpoints of redis under load, with cat to nowhere, and compares what the
// store grew by with what redis dirtied. All images are listed and whole; some are restored,
// and redis is asked for its keys. `make soak` does it with 1 GiB for five minutes.
func TestRedis(t *testing.T) {
	run := redisRun{mib: 64, rate: 200, loaded: 4, stopped: 2, every: 200 * time.Millisecond, restored: 2}
	if os.Getenv("CKPTFS_SOAK") != "" {
		run = redisRun{mib: 1024, rate: 500, loaded: 30, stopped: 2, every: 10 * time.Second, restored: 3}
	}
	m := harness.NewMount(t)
	r := startRedis(t, run)
	if said := read(t, m.Of(r, "explain")); len(said) > 0 {
		t.Errorf("explain: %s", said)
	}
	rows := run.checkpoints(t, m, r)
	r.Alive()
	r.Kill()
	for i := range run.restored {
		row := rows[i*(run.loaded-1)/(run.restored-1)]
		row.restored = restoreRedis(t, m, r, row.name, row.name)
	}
	compare(t, m, rows)
	m.Unmount()
	unique(t, m, rows)
	report(t, run, rows)
	for i, row := range rows[1:] {
		// A chunk that holds no dirtied byte is not stored again; no chunk is more than 64 KiB.
		if most := row.dirty.in64 + rows[0].grown/20; row.grown > most {
			t.Errorf("checkpoint %d: the store grew by %d bytes, more than the %d bytes around what was dirtied", i+2, row.grown, most)
		}
	}
	if last := rows[len(rows)-1]; last.grown > rows[0].grown/10 {
		t.Errorf("an idle redis made the store grow by %d bytes; its first checkpoint by %d", last.grown, rows[0].grown)
	}
}

// redisRow is one checkpoint.
type redisRow struct {
	name     string
	after    time.Duration // since the checkpoint before began
	grown    int64         // bytes that the store's folder grew by
	unique   int64         // bytes that the store says are the image's own
	took     time.Duration
	pause    string
	dirty    *dirtied // since the checkpoint before
	restored string   // what redis said
}

// startRedis starts a redis that fills itself, closes its port and keeps itself busy. What
// would start on its own is off: snapshots fork, and defragmentation moves memory. A title
// would overwrite the environment, by which the harness knows its programs.
func startRedis(t *testing.T, run redisRun) *harness.Program {
	t.Helper()
	dir := harness.TempDir(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	r := harness.StartCommand(t, dir, harness.Tool(t, "redis-server"), "--bind", "127.0.0.1", "--port", itoa(freePort(t)),
		"--save", "", "--appendonly", "no", "--activedefrag", "no", "--set-proc-title", "no",
		"--loadmodule", harness.Fixture(t, "redisload.so"), in("ready"), in("result"), in("go"), in("control"), itoa(run.mib), itoa(run.rate))
	// To fill a GiB takes a while where much else runs; a redis that fails ends.
	for ready := in("ready"); harness.Exists(r.PID); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(ready); err == nil {
			break
		}
	}
	r.WaitReady()
	return r
}

// tellRedis has the module carry out a command.
func tellRedis(t *testing.T, r *harness.Program, line string) {
	t.Helper()
	control := filepath.Join(r.Dir, "control")
	write(t, control+".tmp", []byte(line))
	if err := os.Rename(control+".tmp", control); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, line, func() bool {
		_, err := os.Lstat(control)
		return err != nil || harness.State(r.PID) == 0
	})
	r.Alive()
}

// freePort returns a TCP port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// checkpoints takes them all.
func (run redisRun) checkpoints(t *testing.T, m *harness.Mount, r *harness.Program) []*redisRow {
	t.Helper()
	var rows []*redisRow
	seen := map[string]bool{}
	last := time.Now()
	for next := last; len(rows) < run.loaded+run.stopped; next = next.Add(run.every) {
		if len(rows) == run.loaded {
			tellRedis(t, r, "rate 0")
		}
		time.Sleep(time.Until(next))
		before, from := used(t, m.Store), time.Now()
		if got := harness.Shell(t, "cat "+m.Image(r)+" > /dev/null"); got.Code != 0 {
			t.Fatal(got)
		}
		row := &redisRow{after: from.Sub(last), took: time.Since(from)}
		last = from
		for _, name := range m.WaitImages(len(rows) + 1) {
			if !seen[name] {
				row.name = name
			}
			seen[name] = true
		}
		row.grown = used(t, m.Store) - before
		row.pause = pauseOf(string(read(t, filepath.Join(m.Dir, "images", row.name, "log"))))
		rows = append(rows, row)
	}
	return rows
}

// pauseOf finds in an image's log for how long the tree was still.
func pauseOf(log string) string {
	if f := regexp.MustCompile(`still for ([\d.]+ ?[a-zµ]+)`).FindStringSubmatch(log); f != nil {
		return f[1]
	}
	return "?"
}

// compare reads all images back, whole and page by page.
func compare(t *testing.T, m *harness.Mount, rows []*redisRow) {
	t.Helper()
	last := pageSums{}
	for _, row := range rows {
		harness.Must(t, harness.Binary(), "show", "--verify", filepath.Join(m.Dir, "images", row.name, "image"))
		row.dirty, last = since(t, last, filepath.Join(m.Dir, "images", row.name))
	}
}

// restoreRedis brings one moment back, asks redis for its keys and ends it. It returns what
// the module says of them.
func restoreRedis(t *testing.T, m *harness.Mount, r *harness.Program, name, to string) string {
	t.Helper()
	r.Again()
	harness.Must(t, "cp", filepath.Join(m.Dir, "images", name, "image"), m.Restore(to))
	r.Restored()
	port := itoa(freePort(t))
	tellRedis(t, r, "port "+port)
	ask := func(lines string) []string {
		got := harness.RunIn(t, "", strings.NewReader(lines), harness.Tool(t, "redis-cli"), "-p", port)
		if got.Code != 0 {
			t.Fatal(got)
		}
		return strings.Split(strings.TrimSpace(got.Stdout), "\n")
	}
	said := ask("REDISLOAD.VERIFY\nDBSIZE\n")
	var keys, updates int
	if _, err := fmt.Sscanf(said[0], "%d keys are right after %d updates", &keys, &updates); err != nil || len(said) != 2 || said[1] != itoa(keys) || updates == 0 {
		t.Fatalf("%s: redis says %q", name, said)
	}
	var gets strings.Builder
	for i := range 100 {
		fmt.Fprintf(&gets, "GET item:%09d\n", i*keys/100)
	}
	for i, v := range ask(gets.String()) {
		if !whole(v, i*keys/100) {
			t.Errorf("%s: key %d holds %q", name, i*keys/100, v)
		}
	}
	tellRedis(t, r, "port 0")
	r.Pass(true)
	return said[0]
}

// whole tells whether the value is that of the key and fits its own hash.
func whole(value string, key int) bool {
	body, sum, ok := strings.Cut(value, `","sum":"`)
	h := fnv.New64a()
	h.Write([]byte(body)) // returns no error
	return ok && strings.HasPrefix(body, fmt.Sprintf(`{"key":"item:%09d",`, key)) && sum == fmt.Sprintf(`%016x"}`, h.Sum64())
}

// unique asks the store what each image has of its own; nothing may have the store open.
func unique(t *testing.T, m *harness.Mount, rows []*redisRow) {
	t.Helper()
	var list []struct {
		Name   string
		Unique int64
	}
	if err := json.Unmarshal([]byte(harness.Must(t, harness.Binary(), "ls", "--json", "--store", m.Store).Stdout), &list); err != nil {
		t.Fatal(err)
	}
	of := map[string]int64{}
	for _, im := range list {
		of[im.Name] = im.Unique
	}
	for _, row := range rows {
		if row.unique = of[row.name]; row.unique == 0 {
			t.Errorf("%s is not listed or has no bytes of its own", row.name)
		}
	}
}

// report prints the table. The first ratio is growth to dirtied bytes, the second to those
// bytes compressed page by page.
func report(t *testing.T, run redisRun, rows []*redisRow) {
	t.Helper()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "checkpoint\tafter\tdirtied\tin 16 KiB\tin 64 KiB\tzstd, all\tzstd, each\tgrown\tunique\tratio\tto zstd\tpause\tcat\t")
	sum := &redisRow{name: fmt.Sprintf("2 to %d", run.loaded), dirty: &dirtied{}}
	for i, row := range rows {
		label := itoa(i + 1)
		switch {
		case i > run.loaded:
			label = "idle " + label
		case i == run.loaded: // some load came before the stop
			label = "stopped " + label
		case i > 0:
			sum.dirty.add(row.dirty)
			sum.grown, sum.unique = sum.grown+row.grown, sum.unique+row.unique
			sum.after, sum.took = sum.after+row.after, sum.took+row.took
		}
		row.print(w, label)
	}
	sum.print(w, sum.name)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("redis with %d MiB, %d updates and as many reads a second, a checkpoint every %v; MiB, dirtied is the pages of 4 KiB that differ from the image before\n%s",
		run.mib, run.rate, run.every, b.String())
	for _, row := range rows {
		if row.restored != "" {
			t.Logf("%s restored: %s", row.name, row.restored)
		}
	}
}

// print writes one line of the table.
func (r *redisRow) print(w io.Writer, label string) {
	d := r.dirty
	fmt.Fprintf(w, "%s\t%.1f s\t", label, r.after.Seconds())
	for _, n := range []int64{d.pages, d.in16, d.in64, d.together, d.alone, r.grown, r.unique} {
		fmt.Fprintf(w, "%.2f\t", float64(n)/(1<<20))
	}
	fmt.Fprintf(w, "%.2f\t%.2f\t%s\t%v\t\n", float64(r.grown)/float64(d.pages), float64(r.grown)/float64(d.alone), r.pause, r.took.Round(time.Millisecond))
}
