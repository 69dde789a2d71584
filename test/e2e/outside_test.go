package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os/exec"
	"sync/atomic"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// Clients outside the tree that keep one connection while their server is checkpointed, killed and
// restored, by the policy tcp=keep.

var keepOutside = []string{"--policy", "tcp=keep"}

// TestRedisOutside has a client outside that never stops counting.
func TestRedisOutside(t *testing.T) {
	port := freePort(t)
	var counted atomic.Int64
	failed := make(chan error, 1)
	s := server{name: "redis", ready: listens(port), generations: 5, dump: keepOutside,
		start: func(t *testing.T, d string) string {
			return fmt.Sprintf("%s --port %d --bind 127.0.0.1 --dir %s --save ''", harness.Tool(t, "redis-server"), port, d)
		},
		work: func(t *testing.T, n int) {
			if n > 1 {
				return
			}
			c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				in := bufio.NewReader(c)
				for n := int64(1); ; n++ {
					fmt.Fprint(c, "INCR outside\r\n")
					line, err := in.ReadString('\n')
					if err != nil || line != fmt.Sprintf(":%d\r\n", n) {
						failed <- fmt.Errorf("after %d: %q, %v", n-1, line, err)
						return
					}
					counted.Store(n)
				}
			}()
		},
		check: func(t *testing.T, n int) {
			before := counted.Load()
			harness.Eventually(t, "the client counts on", func() bool { return counted.Load() > before+100 || len(failed) > 0 })
			if len(failed) > 0 {
				t.Fatal(<-failed)
			}
		},
	}
	s.run(t)
	noLocks(t)
}

// TestPostgresOutside has a psql outside in a transaction, over TCP.
func TestPostgresOutside(t *testing.T) {
	port := freePort(t)
	var dir string
	var in io.Writer
	var out *bufio.Reader
	as := harness.Tool(t, "runuser") + " -u postgres -- "
	say := func(t *testing.T, sql, want string) {
		t.Helper()
		fmt.Fprintln(in, sql)
		line, err := out.ReadString('\n')
		if err != nil || line != want+"\n" {
			t.Fatalf("%s: %q, %v, want %q", sql, line, err, want)
		}
	}
	var shared []string
	s := server{name: "postgres", dump: keepOutside,
		start: func(t *testing.T, d string) string {
			dir = d
			harness.Must(t, "chown", "postgres", d)
			harness.Must(t, "bash", "-c", as+pgTool(t, "initdb")+" -A trust -E UTF8 --locale=C -D "+d+"/data")
			return fmt.Sprintf("%s%s -D %s/data -k %s -p %d -c listen_addresses=127.0.0.1 -c fsync=off", as, pgTool(t, "postgres"), d, d, port)
		},
		ready: func() bool {
			return harness.Run(t, harness.Tool(t, "psql"), "-h", dir, "-p", fmt.Sprint(port), "-U", "postgres", "-c", "select 1").Code == 0
		},
		work: func(t *testing.T, n int) {
			shared = append(shared, sharedMemory(t, dir)...)
			if n > 1 {
				say(t, fmt.Sprintf("insert into t values (%d) returning n;", n), fmt.Sprint(n))
				return
			}
			c := exec.Command(harness.Tool(t, "psql"), "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-U", "postgres", "-AtqX")
			var err error
			if in, err = c.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			pipe, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			out = bufio.NewReader(pipe)
			harness.Background(t, c)
			say(t, "create table t(n int); begin; insert into t values (1) returning n;", "1")
		},
		check: func(t *testing.T, n int) {
			say(t, "select count(*), txid_current() > 0 from t;", fmt.Sprintf("%d|t", n))
		},
	}
	t.Cleanup(func() { removeShared(t, shared) })
	s.run(t)
	noLocks(t)
}

// TestGoOutside has a keep-alive client outside of a Go server, which uses one connection for all.
func TestGoOutside(t *testing.T) {
	port := freePort(t)
	fresh := 0
	client := &http.Client{Transport: &http.Transport{}}
	s := server{name: "the Go server", ready: listens(port), dump: keepOutside,
		start: func(t *testing.T, d string) string {
			return fmt.Sprintf("cd %s; %s server 127.0.0.1:%d", d, harness.Fixture(t, "gohttp"), port)
		},
		work: func(*testing.T, int) {},
		check: func(t *testing.T, n int) {
			trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
				if !i.Reused {
					fresh++
				}
			}}
			for i := range 20 {
				req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", fmt.Sprintf("http://127.0.0.1:%d/%d", port, i), nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatalf("round %d: %v", n, err)
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil {
					t.Fatalf("round %d: %v", n, err)
				}
			}
			if fresh > 1 {
				t.Fatalf("round %d: the client had to connect %d times", n, fresh)
			}
		},
	}
	s.run(t)
	noLocks(t)
}
