package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestTCPPolicy has a connection to the test: refused, or ended in the image by policy. The tree that
// runs on keeps it.
func TestTCPPolicy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", `import socket, sys, time, os
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
def attempt(f):
    try: return str(f())
    except OSError as e: return e.__class__.__name__
says = [attempt(lambda: s.recv(9).decode()), attempt(lambda: s.recv(9).decode()), attempt(lambda: s.send(b"x"))]
open("result.tmp", "w").write("ok " + " ".join(x or "EOF" for x in says)); os.rename("result.tmp", "result")
`, itoa(l.Addr().(*net.TCPAddr).Port))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r.WaitReady()
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "it is connected to "+l.Addr().String()+" of pid "+itoa(os.Getpid()), "outside the tree", "--policy tcp=keep", "tcp=reset")
	images := map[string]string{}
	for _, p := range []string{"tcp=reset", "tcp=close"} {
		images[p] = r.Dump("--policy", p)
		harness.Say(t, "show", harness.Must(t, harness.Binary(), "show", images[p]).Stdout, "will have ended", "(policy "+p+")")
	}
	fmt.Fprint(c, "one") // the connection lives
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "go"), nil)
	if got := r.Finish(); got != "one EOF 1" {
		t.Errorf("the live connection: %q", got)
	}
	for p, says := range map[string]string{"tcp=reset": "ConnectionResetError EOF BrokenPipeError", "tcp=close": "EOF EOF BrokenPipeError"} {
		r.Again()
		r.Restore(images[p])
		write(t, filepath.Join(dir, "go"), nil)
		if got := r.Finish(); got != says {
			t.Errorf("%s: %q, want %q", p, got, says)
		}
	}
}

// TestPortTaken restores a server whose port somebody else has by now: nothing is made, and the
// refusal names port and holder.
func TestPortTaken(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		dir := harness.TempDir(t)
		port := freePort(t)
		program := `import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM)
s.bind(("127.0.0.1", int(sys.argv[2])))
if sys.argv[1] == "tcp": s.listen(5)
open("ready", "w").close()
if sys.argv[1] == "tcp":
    while True:
        c, _ = s.accept(); c.sendall(b"hello\n"); c.close()
while True:
    d, a = s.recvfrom(100); s.sendto(b"hello\n", a)
`
		r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", program, network, fmt.Sprint(port))
		r.WaitReady()
		image := r.Dump("--kill")
		r.WaitGone()
		var taken interface{ Close() error }
		var err error
		addr := fmt.Sprint("127.0.0.1:", port)
		if network == "tcp" {
			taken, err = net.Listen(network, addr)
		} else {
			taken, err = net.ListenPacket(network, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
		fails(t, []string{harness.Binary(), "restore", image}, "bind to "+addr, "the port is in use by pid "+itoa(os.Getpid()), "end that")
		if harness.Exists(r.PID) {
			t.Fatalf("%s: pid %d was made", network, r.PID)
		}
		taken.Close()
		r.Restore(image)
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(c, "hi")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("%s: the restored server says %q: %v", network, line, err)
		}
		c.Close()
		r.Kill()
	}
}

// TestUDPWaiting has a datagram wait in a socket: it is on the list of what is lost, or refused by policy.
func TestUDPWaiting(t *testing.T) {
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", `import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("127.0.0.1", 0))
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.sendto(b"x", s.getsockname())
open("ready", "w").close()
while True: time.sleep(1)`)
	r.WaitReady()
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null", "--policy", "udp=refuse"}, "datagrams wait in it", "udp=drop")
	image := r.Dump()
	harness.Say(t, "show", harness.Must(t, harness.Binary(), "show", image).Stdout, "datagrams wait in it", "(policy udp=drop)")
	r.Kill()
	r.Restore(image)
	r.Kill()
}

// TestAddressGone restores a socket that is bound to an address which the machine has lost.
func TestAddressGone(t *testing.T) {
	ip := harness.Tool(t, "ip")
	const real = "192.0.2.77"
	harness.Must(t, ip, "addr", "add", real+"/32", "dev", "lo")
	gone := false
	t.Cleanup(func() {
		if !gone {
			harness.Must(t, ip, "addr", "del", real+"/32", "dev", "lo")
		}
	})
	dir := harness.TempDir(t)
	r := harness.StartCommand(t, dir, harness.Tool(t, "python3"), "-c", `import socket, time
s = socket.socket(); s.bind(("`+real+`", 0)); s.listen(1)
open("ready", "w").close()
while True: time.sleep(1)`)
	r.WaitReady()
	image := r.Dump("--kill")
	r.WaitGone()
	harness.Must(t, ip, "addr", "del", real+"/32", "dev", "lo")
	gone = true
	fails(t, []string{harness.Binary(), "restore", image}, "bind to "+real, "this machine does not have that address", "ip addr add")
}

// TestIPMonitor carries an ip(8) that listens to the kernel's news of addresses.
func TestIPMonitor(t *testing.T) {
	ip, dir := harness.Tool(t, "ip"), harness.TempDir(t)
	r := harness.StartCommand(t, dir, ip, "monitor", "address")
	out := func() string { return string(read(t, filepath.Join(dir, "out"))) }
	news := func(addr string) {
		t.Helper()
		harness.Eventually(t, "news of "+addr, func() bool {
			harness.Must(t, ip, "addr", "add", addr+"/32", "dev", "lo")
			harness.Must(t, ip, "addr", "del", addr+"/32", "dev", "lo")
			return strings.Contains(out(), addr)
		})
	}
	news("192.0.2.78")
	image := r.Dump("--kill")
	r.WaitGone()
	r.Restore(image)
	news("192.0.2.79")
	r.Kill()
}
