package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// busyServer is a server that is kept busy while ckptfs is killed.
type busyServer struct {
	start func(t *testing.T, dir string) string // a shell command
	ready func() bool
	// client makes a client outside, whose requests are called one after the other; nil: the load is in the tree.
	client func() (request func() error, err error)
	end    func(t *testing.T, dir string) // the load in the tree ends, and tells of no error
}

const clientsOutside = 4

// TestKilledServers kills ckptfs at random moments of checkpoints of servers under load. Neither they nor their
// clients notice more than a pause.
func TestKilledServers(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) *busyServer{"memcached": busyMemcached, "nginx": busyNginx, "node": busyNode, "postgres": busyPostgres} {
		t.Run(name, func(t *testing.T) { make(t).kill(t, soak(t, 8)) })
	}
}

func (s *busyServer) kill(t *testing.T, kills int) {
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", s.start(t, dir)+"; true")
	harness.Eventually(t, "it is ready", s.ready)
	var served atomic.Int64
	failed := make(chan error, clientsOutside)
	if s.client != nil {
		for range clientsOutside {
			request, err := s.client()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for request := request; ; served.Add(1) {
					if err := request(); err != nil {
						failed <- err
						return
					}
				}
			}()
		}
	}
	harmed := func(when string) {
		t.Helper()
		select {
		case err := <-failed:
			t.Fatalf("%s: after %d requests: %v", when, served.Load(), err)
		default:
		}
		r.Alive()
	}
	var takes time.Duration
	harness.Eventually(t, "a checkpoint is taken", func() bool { // on a busy machine a client may wait to be accepted yet
		began := time.Now()
		res := harness.Run(t, harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null", "--policy", "tcp=keep")
		takes = time.Since(began)
		return res.Code == 0
	})
	for i := range kills {
		args := []string{"dump", itoa(r.PID), "-o", "/dev/null", "--policy", "tcp=keep"}
		if i%2 == 1 { // the packets of its connections are kept away, and the image never gets complete
			args = []string{"dump", itoa(r.PID), "-o", "/dev/full", "--policy", "tcp=keep", "--kill"}
		}
		harness.RunKilled(t, exec.Command(harness.Binary(), args...), time.Duration(rand.Int64N(int64(takes))))
		harmed(fmt.Sprint("kill ", i))
	}
	harness.Must(t, harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null", "--policy", "tcp=keep") // sweeps
	noLocks(t)
	if s.client != nil {
		before := served.Load()
		harness.Eventually(t, "the clients go on", func() bool { return served.Load() > before+100 })
		harmed("in the end")
	}
	if s.end != nil {
		s.end(t, dir)
	}
	r.Kill()
}

func busyMemcached(t *testing.T) *busyServer {
	port, next := freePort(t), atomic.Int64{}
	return &busyServer{ready: listens(port),
		start: func(t *testing.T, _ string) string {
			return fmt.Sprintf("%s -u nobody -l 127.0.0.1 -p %d -U 0 -t 4", harness.Tool(t, "memcached"), port)
		},
		client: func() (func() error, error) {
			c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { c.Close() })
			in, key, n := bufio.NewReader(c), next.Add(1), 0
			return func() error {
				n++
				value := strings.Repeat(fmt.Sprint(n, " "), 200)
				fmt.Fprintf(c, "set k%d 0 0 %d\r\n%s\r\nget k%d\r\n", key, len(value), value, key)
				for _, want := range []string{"STORED", fmt.Sprintf("VALUE k%d 0 %d", key, len(value)), value, "END"} {
					if line, err := in.ReadString('\n'); err != nil || strings.TrimRight(line, "\r\n") != want {
						return fmt.Errorf("%.40q (%w), want %.40q", line, err, want)
					}
				}
				return nil
			}, nil
		},
	}
}

// webClient gets pages over a connection that is kept alive.
func webClient(t *testing.T, port int, path string, body []byte) func() (func() error, error) {
	return func() (func() error, error) {
		c := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: time.Minute}
		t.Cleanup(c.CloseIdleConnections)
		return func() error {
			res, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
			if err != nil {
				return err
			}
			defer res.Body.Close()
			got, err := io.ReadAll(res.Body)
			if err == nil && !bytes.Equal(got, body) {
				err = fmt.Errorf("%s: %d bytes, not the %d it should be", res.Status, len(got), len(body))
			}
			return err
		}, nil
	}
}

func busyNginx(t *testing.T) *busyServer {
	port := freePort(t)
	body := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
	return &busyServer{ready: listens(port), client: webClient(t, port, "/page", body),
		start: func(t *testing.T, dir string) string {
			start := nginxCommand(t, dir, port)
			write(t, filepath.Join(dir, "www", "page"), body)
			return start
		},
	}
}

func busyNode(t *testing.T) *busyServer {
	port := freePort(t)
	return &busyServer{ready: listens(port), client: webClient(t, port, "/", bytes.Repeat([]byte("x"), 100_000)),
		start: func(t *testing.T, _ string) string {
			return fmt.Sprintf(`%s -e 'require("http").createServer((q, s) => s.end("x".repeat(100000))).listen(%d, "127.0.0.1")'`, harness.Tool(t, "node"), port)
		},
	}
}

// busyPostgres has its load in the tree, over a unix socket.
func busyPostgres(t *testing.T) *busyServer {
	port := freePort(t)
	var dir string
	var shared []string
	t.Cleanup(func() { removeShared(t, shared) })
	return &busyServer{
		start: func(t *testing.T, d string) string {
			dir = d
			bench := fmt.Sprintf("%s -h %s -p %d -U postgres", pgTool(t, "pgbench"), dir, port)
			return fmt.Sprintf(`(until %s -i -q postgres 2> init; do sleep 0.1; done; echo > ready
while [ ! -e go ]; do %[1]s -n -c 6 -T 1 postgres > bench 2>&1 || { mv bench failed; exit 1; }; done; mv bench over) & %s`, bench, postgresCommand(t, dir, port))
		},
		ready: func() bool { _, err := os.Stat(filepath.Join(dir, "ready")); return err == nil },
		end: func(t *testing.T, dir string) {
			shared = sharedMemory(t, dir)
			write(t, filepath.Join(dir, "go"), nil)
			over := filepath.Join(dir, "over")
			harness.Eventually(t, "pgbench ends", func() bool {
				if b, err := os.ReadFile(filepath.Join(dir, "failed")); err == nil {
					t.Fatalf("pgbench: %s", b)
				}
				_, err := os.Stat(over)
				return err == nil
			})
			if out := string(read(t, over)); !strings.Contains(out, "number of failed transactions: 0 ") {
				t.Errorf("pgbench says %s", out)
			}
		},
	}
}
