package s3test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"
)

// Region is the region that the server says it is in.
const Region = "us-east-1"

// healthPath answers without a signature as soon as the server serves.
const healthPath = "/health-of-s3test"

// patience is how long the server may take to start; only a hang reaches it.
const patience = time.Minute

// Server is a running S3 server with one bucket.
type Server struct {
	Endpoint  string // http://127.0.0.1:port
	AccessKey string
	SecretKey string
	Bucket    string
	Dir       string // the folder behind: the object KEY is the file Dir/Bucket/KEY

	sidecar string // where metadata goes if Dir's filesystem has no user xattrs, or ""
	proc    *process
}

// Start runs a server over a fresh folder until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := gateway(t)
	base := t.TempDir()
	s := &Server{
		AccessKey: "s3test-access",
		SecretKey: "s3test-secret-key-of-no-account",
		Bucket:    "bench",
		Dir:       filepath.Join(base, "data"),
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if !hasXattrs(t, s.Dir) {
		s.sidecar = filepath.Join(base, "meta")
		if err := os.Mkdir(s.sidecar, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.Stop)
	// A free port can be taken by somebody else before the server has it.
	var err error
	for range 5 {
		s.Endpoint = "http://" + freePort(t)
		if err = s.run(bin); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	// On a busy machine the client may ask twice, and is told the second time that it was done.
	err = s.Client(t).MakeBucket(t.Context(), s.Bucket, minio.MakeBucketOptions{Region: Region})
	if err != nil && minio.ToErrorResponse(err).Code != minio.BucketAlreadyOwnedByYou {
		t.Fatalf("making bucket %s: %v\n%s", s.Bucket, err, s.proc.said())
	}
	return s
}

// Restart kills the server without warning and runs it again on the same port and folder.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop()
	if err := s.run(gateway(t)); err != nil {
		t.Fatal(err)
	}
}

// Stop kills the server. It may be called more than once; what is stored stays.
func (s *Server) Stop() {
	if s.proc != nil {
		s.proc.kill()
		s.proc = nil
	}
}

// Env returns what a program needs in its environment to use the server, as NAME=value.
func (s *Server) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_REGION=" + Region,
		"AWS_ENDPOINT_URL=" + s.Endpoint,
	}
}

// Client returns a client that talks to the server with nothing in between.
func (s *Server) Client(t testing.TB) *minio.Client {
	t.Helper()
	return s.client(t, s.Endpoint, minio.Options{})
}

// client returns a client for an endpoint. Credentials and region are filled in.
func (s *Server) client(t testing.TB, endpoint string, o minio.Options) *minio.Client {
	t.Helper()
	o.Creds = credentials.NewStaticV4(s.AccessKey, s.SecretKey, "")
	o.Region = Region
	o.BucketLookup = minio.BucketLookupPath
	c, err := minio.New(strings.TrimPrefix(endpoint, "http://"), &o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run starts the server at its endpoint and returns when it answers.
func (s *Server) run(bin string) error {
	args := []string{"--port", strings.TrimPrefix(s.Endpoint, "http://"), "--access", s.AccessKey, "--secret", s.SecretKey, "--region", Region,
		"--quiet", "--health", healthPath, "posix"}
	if s.sidecar != "" {
		args = append(args, "--sidecar", s.sidecar)
	}
	p, err := spawn(bin, append(args, s.Dir)...)
	if err != nil {
		return fmt.Errorf("starting %s: %w", bin, err)
	}
	s.proc = p
	if err := p.answers(s.Endpoint + healthPath); err != nil {
		s.Stop()
		return fmt.Errorf("%s on %s: %w\n%s", bin, s.Endpoint, err, p.said())
	}
	return nil
}

// process is a server that was started and what it printed.
type process struct {
	cmd  *exec.Cmd
	out  lockedBuffer
	done chan struct{} // closed when it has ended
}

// spawn starts a program that dies with us. The kernel ties that to the thread which forked,
// so one thread is kept for as long as the program runs.
func spawn(bin string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(bin, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // it was killed, or out tells
		}
	}()
	return p, <-started
}

// answers returns nil as soon as a GET of the URL is a success.
func (p *process) answers(url string) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		select {
		case <-p.done:
			return fmt.Errorf("ended at once: %v", p.cmd.ProcessState)
		case <-time.After(10 * time.Millisecond):
		}
		resp, err := client.Get(url)
		if err != nil {
			continue
		}
		resp.Body.Close()
		// Somebody else's server on this port would not know the path.
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
	return fmt.Errorf("does not answer within %v: %w", patience, context.DeadlineExceeded)
}

// kill ends the program and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// said returns what the program printed.
func (p *process) said() string { return p.out.String() }

// lockedBuffer is a buffer that is read while a program still writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// freePort returns a loopback address that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// hasXattrs tells whether files in dir can have attributes of users. The server keeps ETags
// and checksums there; beside the object (sidecar) they are not changed in one step with it,
// so that is only for filesystems such as an old kernel's tmpfs.
func hasXattrs(t testing.TB, dir string) bool {
	t.Helper()
	switch err := unix.Setxattr(dir, "user.s3test", []byte("x"), 0); err {
	case nil:
		return true
	case unix.ENOTSUP, unix.EPERM:
		return false
	default:
		t.Fatalf("setting an attribute of %s: %v", dir, err)
		return false
	}
}
