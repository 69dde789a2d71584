package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// TestTCPPolicy has a connection inside the tree: refused, or ended in the image by policy. The tree that
// runs on keeps it.
func TestTCPPolicy(t *testing.T) {
	r := harness.Start(t, "inet", "connected")
	fails(t, []string{harness.Binary(), "dump", itoa(r.PID), "-o", "/dev/null"}, "it is connected to 127.0.0.1:", "TCP connections are not kept", "--policy tcp=reset")
	var images []string
	for _, p := range []string{"tcp=reset", "tcp=close"} {
		image := r.Dump("--policy", p)
		harness.Say(t, "show", harness.Must(t, harness.Binary(), "show", image).Stdout, "will have ended", "(policy "+p+")")
		images = append(images, image)
	}
	r.Pass(false)
	for _, image := range images {
		r.Restore(image)
		r.Pass(true)
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
