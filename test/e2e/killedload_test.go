package e2e

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestKilledUnderLoad kills ckptfs at random moments of checkpoints of a redis that fifty clients in
// its tree keep busy, and one outside, which counts. None of them sees an error, and no count is lost.
// In two of three its packets are kept away meanwhile.
func TestKilledUnderLoad(t *testing.T) {
	kills := soak(t, 30)
	dir, port := harness.TempDir(t), freePort(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", fmt.Sprintf(`%s --port %d --bind 127.0.0.1 --dir %s --save '' > redis.log &
until %s -p %d ping | grep -q PONG; do sleep 0.05; done
echo > ready
while [ ! -e go ]; do %s -p %d -c 50 -n 20000 -t set,get -r 1000 --csv > bench 2>&1 || { echo "redis-benchmark: $?" > left; exit 1; }; grep -q GET bench || { echo "no GET" > left; exit 1; }; done
echo ok > result.tmp; mv result.tmp result; wait`,
		harness.Tool(t, "redis-server"), port, dir, harness.Tool(t, "redis-cli"), port, harness.Tool(t, "redis-benchmark"), port))
	t.Cleanup(func() {
		for _, name := range []string{"left", "bench", "redis.log"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil && t.Failed() {
				t.Logf("%s: %s", name, b) // why bash has left, if it did by itself
			}
		}
	})
	r.WaitReady()
	c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var counted atomic.Int64
	failed := make(chan error, 1)
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
	for i := range kills {
		end := []string{"--kill", "--stop"}[i%2] // the image never gets complete: the disk is full
		args := []string{"dump", itoa(r.PID), "-o", "/dev/full", "--policy", "tcp=keep", end}
		if i%3 == 0 {
			args = []string{"dump", itoa(r.PID), "-o", "/dev/null", "--policy", "tcp=keep"}
		}
		harness.RunKilled(t, exec.Command(harness.Binary(), args...), time.Duration(rand.Int64N(int64(150*time.Millisecond))))
		select {
		case err := <-failed:
			t.Fatalf("kill %d: %v", i, err)
		default:
		}
	}
	harness.Must(t, harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null", "--policy", "tcp=keep") // sweeps
	noLocks(t)
	before := counted.Load()
	harness.Eventually(t, "the client outside counts on", func() bool { return counted.Load() > before+100 })
	write(t, dir+"/go", nil)
	harness.Eventually(t, "the benchmark ends", func() bool { _, err := os.Stat(dir + "/result"); return err == nil })
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	r.Kill()
	t.Logf("%d kills, the client outside counted %d", kills, counted.Load())
}
