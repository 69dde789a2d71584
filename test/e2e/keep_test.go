package e2e

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// kept is a program with connections to somebody outside, in every state that matters. The first byte
// of each says which it is.
const kept = `import socket, sys, os, time, fcntl, termios, struct, select
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
def connect(n, sock=None):
    s = socket.socket(family); s.connect((sys.argv[1], int(sys.argv[2]))); s.sendall(bytes([n])); return s
idle, full, gotfin, sentfin, closing, plain = s = [connect(n) for n in range(6)]
full.setblocking(False); n = 0
try:
    while True: n += full.send(b"a" * 65536)
except BlockingIOError: pass
full.setblocking(True); full.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
sentfin.sendall(b"last"); sentfin.shutdown(socket.SHUT_WR)
waits = lambda x: struct.unpack("i", fcntl.ioctl(x, termios.FIONREAD, b"    "))[0]
def ended(x):
    p = select.poll(); p.register(x, 0x2000); return bool(p.poll(0))
while waits(full) < 30000 or not ended(gotfin) or not ended(closing): time.sleep(0.01)
closing.shutdown(socket.SHUT_WR)
open("full", "w").write(str(n)); open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
def all(x):
    b = b""
    while d := x.recv(65536): b += d
    return b
says = []
idle.sendall(b"ping"); says.append(idle.recv(9).decode())
got = b""
while len(got) < 30000: got += full.recv(65536)
says.append("full" if got == b"b" * 30000 else "damaged"); full.sendall(b"end"); full.shutdown(socket.SHUT_WR); full.recv(1)
says.append(all(gotfin).decode()); gotfin.sendall(b"after"); gotfin.close()
says.append(all(sentfin).decode())
says.append(all(closing).decode())
for i in range(3): plain.sendall(b"x" * 100000); says.append(plain.recv(9).decode())
says.append(str(full.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
open("result.tmp", "w").write("ok " + " ".join(says)); os.rename("result.tmp", "result")
`

// peer is the other side of kept; what it hears goes to heard, or an error.
func peer(l net.Listener, heard chan<- string, ready, restored <-chan struct{}) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			what := make([]byte, 1)
			if _, err := io.ReadFull(c, what); err != nil {
				heard <- err.Error()
				return
			}
			text, err := peerTalks(c.(*net.TCPConn), what[0], ready, restored)
			if err != nil {
				text += " " + err.Error()
			}
			heard <- fmt.Sprint(what[0], text)
		}()
	}
}

func peerTalks(c *net.TCPConn, what byte, ready, restored <-chan struct{}) (string, error) {
	defer c.Close()
	read := func(n int) string {
		b := make([]byte, n)
		n, err := io.ReadFull(c, b)
		if err != nil {
			return fmt.Sprintf("%q, %v", b[:n], err)
		}
		return string(b)
	}
	switch what {
	case 0: // idle: the answer is sent before the question, while nobody has the other end
		<-ready
		fmt.Fprint(c, "pong")
		return read(4), nil
	case 1:
		fmt.Fprint(c, strings.Repeat("b", 30000))
		<-restored
		b, err := io.ReadAll(c)
		return fmt.Sprint(len(b)-3, len(bytes.TrimLeft(b, "a")), string(bytes.TrimLeft(b, "a"))), err
	case 2:
		fmt.Fprint(c, "bye")
		if err := c.CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	case 3:
		b, err := io.ReadAll(c)
		<-ready
		fmt.Fprint(c, "reply") // and then the end: both while nobody is there
		return string(b), err
	case 4:
		fmt.Fprint(c, "done")
		if err := c.CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	}
	for i := range 3 {
		if got := read(100000); strings.Trim(got, "x") != "" {
			return got, nil
		}
		fmt.Fprint(c, i)
	}
	return read(1), nil // until it is killed
}

// TestTCPKeep has connections to the test: they outlive checkpoint, end and restore of the program, and
// not even those that the peer wrote to meanwhile are reset.
func TestTCPKeep(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			heard, ready, restored := make(chan string, 20), make(chan struct{}), make(chan struct{})
			go peer(l, heard, ready, restored)
			dir := harness.TempDir(t)
			r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", kept, host, itoa(l.Addr().(*net.TCPAddr).Port))
			r.WaitReady()
			alive := r.Dump("--policy", "tcp=keep") // of a tree that goes on: nobody notices
			image := r.Dump("--kill", "--policy", "tcp=keep")
			r.WaitGone()
			close(ready)
			time.Sleep(500 * time.Millisecond) // in which packets of the peer come, and again
			r.Restore(image)
			close(restored)
			write(t, filepath.Join(dir, "go"), nil)
			if got, want := r.Finish(), "pong full bye reply done 0 1 2 1"; got != want {
				t.Errorf("the program says %q, want %q", got, want)
			}
			n := string(read(t, filepath.Join(dir, "full")))
			want := map[string]bool{"0ping": true, "1" + n + " 3end": true, "2after": true, "3last": true, "4": true, `5"", EOF`: true}
			for range len(want) {
				select {
				case got := <-heard:
					if !want[got] {
						t.Errorf("the peer heard %q", got)
					}
					delete(want, got)
				case <-time.After(60 * time.Second):
					t.Fatalf("the peer did not hear %v", want)
				}
			}
			// Its peers know nothing of the other image by now: their host says so.
			r.Again()
			os.Remove(filepath.Join(dir, "go"))
			r.Restore(alive)
			r.Kill()
			noLocks(t)
		})
	}
}

// noLocks checks that no rule of ours is left.
func noLocks(t *testing.T) {
	t.Helper()
	if text := harness.Must(t, harness.Tool(t, "nft"), "list", "tables").Stdout; strings.Contains(text, "ckptfs") {
		t.Errorf("left: %s", harness.Must(t, "nft", "list", "ruleset").Stdout)
	}
}

// TestDownloadKept has a client outside the tree in the middle of a slow download from nginx, which
// goes through checkpoints; then one whose daemon is killed while the packets are kept away.
func TestDownloadKept(t *testing.T) {
	dir, port := harness.TempDir(t), freePort(t)
	os.Chmod(dir, 0o755)
	if err := os.MkdirAll(filepath.Join(dir, "www"), 0o755); err != nil {
		t.Fatal(err)
	}
	body := bytes.Repeat([]byte("0123456789abcde\n"), 3<<20/16)
	for i := range body {
		body[i] ^= byte(i >> 12)
	}
	write(t, filepath.Join(dir, "www", "big"), body)
	write(t, filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, `
worker_processes 2; daemon off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 200; }
http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  sendfile off; server { listen 127.0.0.1:%[2]d; root %[1]s/www; limit_rate 600k; } }
`, dir, port))
	r := harness.StartCommand(t, dir, harness.Tool(t, "bash"), "-c", harness.Tool(t, "nginx")+" -c "+dir+"/nginx.conf -p "+dir+"; true")
	harness.Eventually(t, "nginx listens", listens(port))
	c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /big HTTP/1.0\r\n\r\n")
	done := make(chan error, 1)
	var got []byte
	go func() {
		var err error
		got, err = io.ReadAll(c)
		done <- err
	}()
	for range 3 {
		time.Sleep(300 * time.Millisecond)
		image := filepath.Join(harness.TempDir(t), "image")
		harness.Eventually(t, "a checkpoint", func() bool { // nothing may wait to be accepted
			return harness.Run(t, harness.Binary(), "dump", fmt.Sprint(r.PID), "-o", image, "--kill", "--policy", "tcp=keep").Code == 0
		})
		r.WaitGone()
		time.Sleep(300 * time.Millisecond)
		r.Restore(image)
	}
	select {
	case err = <-done:
	case <-time.After(60 * time.Second):
		err = errors.New("it does not end")
	}
	_, rest, _ := bytes.Cut(got, []byte("\r\n\r\n"))
	if err != nil || md5.Sum(rest) != md5.Sum(body) {
		t.Errorf("%d of %d bytes came: %v", len(rest), len(body), err)
	}
	r.Kill()
	noLocks(t)
}

// TestKeepKilled kills the ckptfs that keeps packets away: the next one finds and removes its rule,
// and the connection goes on.
func TestKeepKilled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", `import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
memory = bytes(range(256)) * 40000
open("ready", "w").close()
while d := s.recv(100): s.sendall(d)
`, itoa(l.Addr().(*net.TCPAddr).Port))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r.WaitReady()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0) // which nobody reads: the checkpoint does not end
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	dump := exec.Command(harness.Binary(), "dump", itoa(r.PID), "-o", fifo, "--kill", "--policy", "tcp=keep")
	harness.Background(t, dump)
	nft := harness.Tool(t, "nft")
	locked := func() bool { return strings.Contains(harness.Must(t, nft, "list", "ruleset").Stdout, "ckptfs") }
	harness.Eventually(t, "the packets are kept away", locked)
	dump.Process.Kill()
	harness.Eventually(t, "it is gone", func() bool { return !harness.Exists(dump.Process.Pid) })
	if !locked() {
		t.Fatal("nothing is left")
	}
	fmt.Fprint(c, "hello")
	out := harness.Must(t, harness.Binary(), "dump", itoa(r.PID), "-o", filepath.Join(dir, "image"), "--policy", "tcp=keep")
	harness.Say(t, "dump", out.Stderr, "removed what a ckptfs that was killed had left", "1 TCP connections")
	noLocks(t)
	c.SetReadDeadline(time.Now().Add(60 * time.Second))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	r.Kill()
}
