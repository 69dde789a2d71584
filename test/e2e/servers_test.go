package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// server is a real server that goes through checkpoints and restores; its usual client looks at the
// data before and after. The table of the README is made of these.
type server struct {
	name string
	// start returns a shell command that runs it in dir; the shell is the root of the tree, as many
	// servers write their title over the environment, by which the harness knows its programs.
	start func(t *testing.T, dir string) string
	ready func() bool
	// work changes its data. n is the number of the round, from 1 on.
	work func(t *testing.T, n int)
	// check asserts that the work of rounds 1 to n is there.
	check       func(t *testing.T, n int)
	generations int // restores in a row; 0: two
	dump        []string
}

// run takes the server through a checkpoint that it survives, and then some that it does not.
func (s *server) run(t *testing.T) {
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", s.start(t, dir)+"; true")
	harness.Eventually(t, s.name+" is ready", s.ready)
	s.work(t, 1)
	s.check(t, 1)
	s.idle(t, r)
	r.Dump(s.dump...)
	s.check(t, 1)
	r.Alive()
	for n := 2; n <= 1+max(2, s.generations); n++ {
		s.work(t, n)
		s.idle(t, r)
		image := r.Dump(append([]string{"--kill"}, s.dump...)...)
		r.WaitGone()
		r.Restore(image)
		s.check(t, n)
		r.Alive()
	}
	s.work(t, 100) // it takes new work, too
	r.Kill()
}

// idle waits until the server has closed the connections of clients that have gone.
func (s *server) idle(t *testing.T, r *harness.Program) {
	t.Helper()
	if len(s.dump) > 0 { // a policy says what becomes of them
		return
	}
	harness.Eventually(t, s.name+" has no connection", func() bool {
		return !strings.Contains(harness.Run(t, harness.Binary(), "explain", fmt.Sprint(r.PID)).Stdout, "it is connected to")
	})
}

// listens reports whether somebody accepts connections on a port.
func listens(port int) func() bool {
	return func() bool {
		c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", port), time.Second)
		if err != nil {
			return false
		}
		c.Close()
		return true
	}
}

// ask sends text to a port and reads lines until one begins with end.
func ask(t *testing.T, port int, text, end string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", port), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for in := bufio.NewReader(c); ; {
		line, err := in.ReadString('\n')
		all.WriteString(line)
		if strings.HasPrefix(line, end) {
			return all.String()
		}
		if err != nil {
			t.Fatalf("the server answers %q: %v", all.String(), err)
		}
	}
}

// get fetches a page over a connection of its own.
func get(t *testing.T, port int, path string) string {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	res, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %q %v", path, res.Status, b, err)
	}
	return string(b)
}

// want fails the test if what a server said is not what it should have said.
func want(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Fatalf("%s: %q, want %q", what, got, want)
	}
}

func TestMemcached(t *testing.T) {
	port := freePort(t)
	s := server{name: "memcached", ready: listens(port),
		start: func(t *testing.T, _ string) string {
			return fmt.Sprintf("%s -u nobody -l 127.0.0.1 -p %d -U 0 -t 4", harness.Tool(t, "memcached"), port)
		},
		work: func(t *testing.T, n int) {
			value := strings.Repeat(fmt.Sprint("value ", n, " "), 100)
			want(t, "set", ask(t, port, fmt.Sprintf("set key%d 0 0 %d\r\n%s\r\n", n, len(value), value), "STORED"), "STORED")
		},
		check: func(t *testing.T, n int) {
			for i := 1; i <= n; i++ {
				if got := ask(t, port, fmt.Sprintf("get key%d\r\n", i), "END"); !strings.Contains(got, strings.Repeat(fmt.Sprint("value ", i, " "), 100)) {
					t.Fatalf("get key%d: %q", i, got)
				}
			}
		},
	}
	s.run(t)
}

// TestRedisServer has clients by TCP and by a unix socket, five generations, and a BGSAVE on the way.
func TestRedisServer(t *testing.T) {
	port := freePort(t)
	var dir string
	cli := func(t *testing.T, args ...string) string {
		t.Helper()
		return harness.Must(t, append([]string{harness.Tool(t, "redis-cli"), "-s", filepath.Join(dir, "sock")}, args...)...).Stdout
	}
	s := server{name: "redis", ready: listens(port), generations: 5,
		start: func(t *testing.T, d string) string {
			dir = d
			return fmt.Sprintf("%s --port %d --bind 127.0.0.1 --unixsocket %s/sock --dir %s --save '' --appendonly no --rdb-key-save-delay 2000",
				harness.Tool(t, "redis-server"), port, d, d)
		},
		work: func(t *testing.T, n int) {
			cli(t, "eval", "for i=1,500 do redis.call('set', ARGV[1]..':'..i, string.rep('x', 1000)..i) end", "0", fmt.Sprint(n))
			if n == 3 { // the child that saves is checkpointed, too: 1,500 keys at 2 ms
				cli(t, "bgsave")
			}
		},
		check: func(t *testing.T, n int) {
			for i := 1; i <= n; i++ {
				want(t, "key", cli(t, "get", fmt.Sprint(i, ":77")), strings.Repeat("x", 1000)+"77")
			}
			want(t, "dbsize", cli(t, "dbsize"), fmt.Sprint(500*n))
			want(t, "ping over TCP", ask(t, port, "PING\r\n", "+PONG"), "+PONG")
			if n == 3 {
				harness.Eventually(t, "saved", func() bool { return strings.Contains(cli(t, "info", "persistence"), "rdb_bgsave_in_progress:0") })
				if info := cli(t, "info", "persistence"); !strings.Contains(info, "rdb_last_bgsave_status:ok") {
					t.Fatalf("the BGSAVE that was checkpointed failed: %s", info)
				}
			}
		},
	}
	s.run(t)
}

// nginxCommand is the command of an nginx with two workers that serves dir/www.
func nginxCommand(t *testing.T, dir string, port int) string {
	t.Helper()
	os.Chmod(dir, 0o755)
	write(t, filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, `
worker_processes 2; daemon off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 200; }
http { access_log %[1]s/access.log; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_requests 1000000;
  server { listen 127.0.0.1:%[2]d; root %[1]s/www; } }
`, dir, port))
	if err := os.MkdirAll(filepath.Join(dir, "www"), 0o755); err != nil {
		t.Fatal(err)
	}
	return harness.Tool(t, "nginx") + " -c " + dir + "/nginx.conf -p " + dir
}

// TestNginx restores a master with two workers five times. At the end they obey their signals.
func TestNginx(t *testing.T) {
	port := freePort(t)
	var dir string
	body := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	s := server{name: "nginx", ready: listens(port), generations: 5,
		start: func(t *testing.T, d string) string {
			dir = d
			return nginxCommand(t, d, port)
		},
		work: func(t *testing.T, n int) {
			write(t, filepath.Join(dir, "www", fmt.Sprint("page", n)), append(fmt.Append(nil, n, " "), body...))
		},
		check: func(t *testing.T, n int) {
			for i := 1; i <= n; i++ {
				for range 4 { // both workers
					if got := get(t, port, fmt.Sprint("/page", i)); got != fmt.Sprint(i, " ")+string(body) {
						t.Fatalf("page %d has %d bytes and begins with %q", i, len(got), got[:min(len(got), 20)])
					}
				}
			}
			if n == 6 {
				pid := strings.TrimSpace(string(read(t, filepath.Join(dir, "pid"))))
				harness.Must(t, "kill", "-HUP", pid)
				harness.Eventually(t, "it listens after a reload", listens(port))
				get(t, port, "/page1")
			}
		},
	}
	s.run(t)
}

// TestRedisClients has fifty clients in the tree keep a redis busy, over TCP, all the time: each checkpoint
// and restore finds requests and answers under way. The benchmark would report what is lost.
func TestRedisClients(t *testing.T) {
	dir, port := harness.TempDir(t), freePort(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", fmt.Sprintf(`%s --port %d --bind 127.0.0.1 --dir %s --save '' > redis.log &
until %s -p %d ping | grep -q PONG; do sleep 0.05; done
%s -p %d -c 50 -n 150000 -t set,incr -r 1000 --csv > bench && echo ok > result.tmp && mv result.tmp result; wait`,
		harness.Tool(t, "redis-server"), port, dir, harness.Tool(t, "redis-cli"), port, harness.Tool(t, "redis-benchmark"), port))
	served := func() string {
		c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", port), time.Second)
		if err != nil {
			return ""
		}
		c.Close()
		return ask(t, port, "INFO clients\r\n", "clients_in_timeout_table")
	}
	harness.Eventually(t, "fifty clients", func() bool { return strings.Contains(served(), "connected_clients:51") })
	for range 3 {
		image := ""
		harness.Eventually(t, "a moment without a connection from outside", func() bool { // INFO was one
			image = filepath.Join(harness.TempDir(t), "image")
			return harness.Run(t, harness.Binary(), "dump", fmt.Sprint(r.PID), "-o", image, "--kill").Code == 0
		})
		r.WaitGone()
		r.Restore(image)
	}
	harness.Eventually(t, "the benchmark is over", func() bool { _, err := os.Stat(filepath.Join(dir, "result")); return err == nil })
	out := string(read(t, filepath.Join(dir, "bench")))
	if !strings.Contains(out, `"SET"`) || !strings.Contains(out, `"INCR"`) {
		t.Errorf("redis-benchmark says %q", out)
	}
	r.Kill()
}

// TestConnectionsComing has fifty clients in the tree that open a connection for each request: each checkpoint finds
// some that wait to be accepted, with the request, and others that have just been closed.
func TestConnectionsComing(t *testing.T) {
	dir, port := harness.TempDir(t), freePort(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", fmt.Sprintf(`%s --port %d --bind 127.0.0.1 --dir %s --save '' > redis.log &
until %s -p %d ping | grep -q PONG; do sleep 0.05; done
echo > ready
%s -p %d -c 50 -k 0 -n 60000 -t incr --csv > bench 2>&1 && %s -p %[2]d get counter:__rand_int__ > count && echo ok > over.tmp && mv over.tmp over; wait`,
		harness.Tool(t, "redis-server"), port, dir, harness.Tool(t, "redis-cli"), port, harness.Tool(t, "redis-benchmark"), port, harness.Tool(t, "redis-cli")))
	r.WaitReady()
	for range 3 {
		time.Sleep(150 * time.Millisecond)
		image := filepath.Join(harness.TempDir(t), "image")
		// By chance each of some checkpoints may come upon a connection that is just being made.
		harness.Eventually(t, "a checkpoint", func() bool {
			return harness.Run(t, harness.Binary(), "dump", itoa(r.PID), "-o", image, "--kill").Code == 0
		})
		r.WaitGone()
		r.Restore(image)
	}
	harness.Eventually(t, "the benchmark is over", func() bool { _, err := os.Stat(filepath.Join(dir, "over")); return err == nil })
	if out, count := string(read(t, filepath.Join(dir, "bench"))), string(read(t, filepath.Join(dir, "count"))); !strings.Contains(out, `"INCR"`) || count != "60000\n" {
		t.Errorf("redis-benchmark says %q, redis has counted %q", out, count)
	}
	r.Kill()
}
