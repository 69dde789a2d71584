package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// pgTool finds a program of PostgreSQL 15, whose servers Debian keeps out of PATH.
func pgTool(t *testing.T, name string) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		return harness.Tool(t, name)
	}
	return found[len(found)-1]
}

// postgresCommand makes a database in dir and returns the command of its server.
func postgresCommand(t *testing.T, dir string, port int) string {
	t.Helper()
	as := harness.Tool(t, "runuser") + " -u postgres -- "
	harness.Must(t, "chown", "postgres", dir)
	harness.Must(t, "bash", "-c", as+pgTool(t, "initdb")+" -A trust -E UTF8 --locale=C -D "+dir+"/data")
	return fmt.Sprintf("%s%s -D %s/data -k %s -p %d -c listen_addresses=127.0.0.1 -c fsync=off", as, pgTool(t, "postgres"), dir, dir, port)
}

// TestPostgres has a session inside the tree in a transaction, which goes on after each restore, and
// clients from outside. A dump of the database is the same before and after.
func TestPostgres(t *testing.T) {
	port := freePort(t)
	var dir string
	psql := func(t *testing.T, sql string) string {
		t.Helper()
		return harness.Must(t, harness.Tool(t, "psql"), "-h", dir, "-p", fmt.Sprint(port), "-U", "postgres", "-AtqX", "-c", sql).Stdout
	}
	dump := func(t *testing.T) string {
		t.Helper()
		all := harness.Must(t, pgTool(t, "pg_dump"), "-h", dir, "-p", fmt.Sprint(port), "-U", "postgres", "postgres").Stdout
		var kept strings.Builder
		for line := range strings.Lines(all) {
			if !strings.HasPrefix(line, `\restrict`) && !strings.HasPrefix(line, `\unrestrict`) { // a random key
				kept.WriteString(line)
			}
		}
		return kept.String()
	}
	sums, shared := map[int]string{}, []string{}
	s := server{name: "postgres", generations: 5,
		start: func(t *testing.T, d string) string {
			dir = d
			session := fmt.Sprintf(`(until test -e %[1]s/up; do sleep 0.1; done; { echo "create table t(n int, v text); begin; insert into t values (0, 'of the transaction');"
until test -e %[1]s/commit; do sleep 0.1; done; echo 'commit;'; sleep 1000; } | %[2]s -h %[1]s -p %[3]d -U postgres -qX)`, d, harness.Tool(t, "psql"), port)
			return session + " & " + postgresCommand(t, d, port)
		},
		ready: func() bool {
			return harness.Run(t, harness.Tool(t, "psql"), "-h", dir, "-p", fmt.Sprint(port), "-U", "postgres", "-c", "select 1").Code == 0
		},
		work: func(t *testing.T, n int) {
			if n == 1 {
				write(t, filepath.Join(dir, "up"), nil)
				harness.Eventually(t, "the table is there", func() bool { return strings.TrimSpace(psql(t, "select to_regclass('t')")) == "t" })
			}
			psql(t, fmt.Sprintf("insert into t select i, 'round %d' from generate_series(1, 1000) i", n))
			sums[n] = dump(t)
		},
		check: func(t *testing.T, n int) {
			shared = append(shared, sharedMemory(t, dir)...) // parallel queries make more
			want(t, "rows", psql(t, "select count(*) from t"), fmt.Sprint(1000*n))
			want(t, "rows over TCP", harness.Must(t, harness.Tool(t, "psql"), "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-U", "postgres", "-AtqX", "-c",
				fmt.Sprintf("select sum(n) from t where v = 'round %d'", n)).Stdout, "500500")
			if dump(t) != sums[n] {
				t.Fatal("pg_dump differs from before the checkpoint")
			}
			if n == 6 { // the transaction that went through all of them
				write(t, filepath.Join(dir, "commit"), nil)
				harness.Eventually(t, "committed", func() bool { return strings.TrimSpace(psql(t, "select v from t where n = 0")) == "of the transaction" })
			}
		},
	}
	t.Cleanup(func() { removeShared(t, shared) })
	s.run(t)
}

// sharedMemory lists the shared memory of a PostgreSQL: ids of System V, and paths.
func sharedMemory(t *testing.T, dir string) (all []string) {
	said := string(read(t, filepath.Join(dir, "data/postmaster.pid")))
	for line := range strings.Lines(said) {
		if f := strings.Fields(line); len(f) == 2 { // key and id
			all = append(all, f[1])
		}
	}
	pid, _, _ := strings.Cut(said, "\n")
	for _, pid := range append(strings.Fields(harness.Run(t, "pgrep", "-P", pid).Stdout), pid) {
		maps, err := os.ReadFile("/proc/" + pid + "/maps")
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(maps)) {
			if f := strings.Fields(line); len(f) >= 6 && strings.HasPrefix(f[5], "/dev/shm/PostgreSQL.") {
				all = append(all, f[5])
			}
		}
	}
	return all
}

// removeShared removes what a PostgreSQL leaves that is killed.
func removeShared(t *testing.T, all []string) {
	for _, m := range all {
		if filepath.IsAbs(m) {
			os.Remove(m) // it may be gone
		} else {
			harness.Run(t, "ipcrm", "-m", m)
		}
	}
}

func TestMariaDB(t *testing.T) {
	port := freePort(t)
	var dir string
	sql := func(t *testing.T, text string) string {
		t.Helper()
		return harness.Must(t, harness.Tool(t, "mariadb"), "-S", filepath.Join(dir, "sock"), "-N", "-e", text, "test").Stdout
	}
	s := server{name: "mariadb",
		start: func(t *testing.T, d string) string {
			dir = d
			data := filepath.Join(d, "data")
			if err := os.Mkdir(data, 0o700); err != nil {
				t.Fatal(err)
			}
			harness.Must(t, harness.Tool(t, "mariadb-install-db"), "--no-defaults", "--user=root", "--datadir="+data, "--auth-root-authentication-method=normal")
			return fmt.Sprintf("%s --no-defaults --user=root --datadir=%s --socket=%s/sock --port=%d --bind-address=127.0.0.1 --pid-file=%s/pid --innodb-use-native-aio=1 --innodb-flush-log-at-trx-commit=0",
				harness.Tool(t, "mariadbd"), data, d, port, d)
		},
		ready: func() bool {
			return harness.Run(t, harness.Tool(t, "mariadb"), "-S", filepath.Join(dir, "sock"), "-e", "create database if not exists test").Code == 0
		},
		work: func(t *testing.T, n int) {
			sql(t, fmt.Sprintf("create table if not exists t(n int, v text) engine=innodb; insert into t select seq, 'round %d' from seq_1_to_1000", n))
		},
		check: func(t *testing.T, n int) {
			want(t, "rows", sql(t, "select count(*), sum(n) from t"), fmt.Sprintf("%d\t%d", 1000*n, 500500*n))
			want(t, "check", sql(t, "check table t"), "test.t\tcheck\tstatus\tOK")
		},
	}
	s.run(t)
}
