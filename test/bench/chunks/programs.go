package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// program is one of the programs whose memory is looked at.
type program struct {
	name string
	real bool // the engine takes it, so that a real image can be compared
	// start begins an instance in a folder of its own and returns when it has its data and
	// is at work. The work ends with ctx.
	start func(ctx context.Context, dir string) (pid int, err error)
}

func programs() []program {
	return []program{
		{"redis", false, startRedis},
		{"postgres", false, startPostgres},
		{"python3", true, startPython},
		{"node", true, startNode},
		{"java", true, startJava},
	}
}

//go:embed load/load.py
var loadPython []byte

//go:embed load/load.js
var loadNode []byte

//go:embed load/Load.java
var loadJava []byte

// patience bounds how long a program may take to fill its memory.
const patience = 3 * time.Minute

// spawn starts a program in a session of its own, with nothing open but /dev/null and a log.
// It is killed when ctx ends.
func spawn(ctx context.Context, dir, as string, argv ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if as != "" {
		u, err := user.Lookup(as)
		if err != nil {
			return nil, err
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2, os.Chown(dir, int(uid), int(gid))); err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, cmd.Start()
}

// finish runs a program to its end.
func finish(ctx context.Context, dir, as string, argv ...string) error {
	cmd, err := spawn(ctx, dir, as, argv...)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s: %w; see %s/log", strings.Join(argv, " "), err, dir)
	}
	return nil
}

// serve starts a program that goes on running; it is waited for when ctx has killed it.
func serve(ctx context.Context, dir, as string, argv ...string) (int, error) {
	cmd, err := spawn(ctx, dir, as, argv...)
	if err != nil {
		return 0, err
	}
	go cmd.Wait() // its end is our doing
	return cmd.Process.Pid, nil
}

// until waits for something to become true.
func until(ctx context.Context, what string, ok func() bool) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if ok() {
			return nil
		}
	}
	return fmt.Errorf("%s did not come within %s", what, patience)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startScript runs one of our loads, which makes the file "ready" when its data is there.
func startScript(ctx context.Context, dir, file string, text []byte, argv ...string) (int, error) {
	if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
		return 0, err
	}
	pid, err := serve(ctx, dir, "", append(argv, "ready")...)
	if err != nil {
		return 0, err
	}
	return pid, until(ctx, argv[0], func() bool { return exists(filepath.Join(dir, "ready")) })
}

func startPython(ctx context.Context, dir string) (int, error) {
	return startScript(ctx, dir, "load.py", loadPython, "/usr/bin/python3", "load.py")
}

func startNode(ctx context.Context, dir string) (int, error) {
	return startScript(ctx, dir, "load.js", loadNode, "/usr/bin/node", "load.js")
}

func startJava(ctx context.Context, dir string) (int, error) {
	source := filepath.Join(dir, "Load.java")
	if err := os.WriteFile(source, loadJava, 0o644); err != nil {
		return 0, err
	}
	if err := finish(ctx, dir, "", "/usr/bin/javac", "Load.java"); err != nil {
		return 0, err
	}
	return startScript(ctx, dir, "Load.java", loadJava, "/usr/bin/java", "-Xmx512m", "-cp", ".", "Load")
}

// startPostgres runs a server with its own data and the load of pgbench, 400 transactions a
// second by four clients.
func startPostgres(ctx context.Context, dir string) (int, error) {
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(bins) == 0 {
		return 0, fmt.Errorf("no server in /usr/lib/postgresql, install postgresql: %w", err)
	}
	bin := filepath.Dir(bins[len(bins)-1]) + "/"
	if err := finish(ctx, dir, "postgres", bin+"initdb", "-D", "data", "-A", "trust", "--no-sync"); err != nil {
		return 0, err
	}
	pid, err := serve(ctx, dir, "postgres", bin+"postgres", "-D", "data", "-k", dir, "-c", "listen_addresses=")
	if err != nil {
		return 0, err
	}
	if err := until(ctx, "postgres", func() bool { return exists(filepath.Join(dir, ".s.PGSQL.5432")) }); err != nil {
		return 0, err
	}
	time.Sleep(time.Second) // it takes connections a moment after its socket is there
	if err := finish(ctx, dir, "postgres", bin+"pgbench", "-h", dir, "-i", "-q", "-s", "10", "postgres"); err != nil {
		return 0, err
	}
	_, err = serve(ctx, dir, "postgres", bin+"pgbench", "-h", dir, "-n", "-c", "4", "-R", "400", "-T", "3600", "postgres")
	return pid, err
}

const (
	redisKeys   = 400_000 // about 200 MB of values
	redisBatch  = 100     // operations that are sent together, a fifth of them writes
	redisPeriod = 10 * time.Millisecond
)

func startRedis(ctx context.Context, dir string) (int, error) {
	socket := filepath.Join(dir, "socket")
	pid, err := serve(ctx, dir, "", "/usr/bin/redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no")
	if err != nil {
		return 0, err
	}
	if err := until(ctx, "redis", func() bool { return exists(socket) }); err != nil {
		return 0, err
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	r := redisClient{Writer: bufio.NewWriter(c), in: bufio.NewReader(c), rng: rand.New(rand.NewPCG(1, 1))}
	for i := 0; i < redisKeys; i += redisBatch { // every instance starts with the same values
		for k := range redisBatch {
			r.set(i + k)
		}
		if err := r.answers(redisBatch); err != nil {
			return 0, err
		}
	}
	r.rng = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	go func() {
		defer c.Close()
		r.work(ctx)
	}()
	return pid, nil
}

// redisClient speaks the redis protocol, https://redis.io/docs/latest/develop/reference/protocol-spec.
type redisClient struct {
	*bufio.Writer
	in  *bufio.Reader
	rng *rand.Rand
}

// work reads and writes at a steady rate, some keys much more often than others.
func (r *redisClient) work(ctx context.Context) {
	zipf := rand.NewZipf(r.rng, 1.1, 10, redisKeys-1)
	for ctx.Err() == nil {
		for i := range redisBatch {
			key := int(zipf.Uint64()) * 7919 % redisKeys // not all popular ones side by side
			if i%5 == 0 {
				r.set(key)
			} else {
				r.command("GET", keyName(key))
			}
		}
		if r.answers(redisBatch) != nil {
			return // the server was killed
		}
		time.Sleep(redisPeriod)
	}
}

func keyName(i int) string { return "session:" + strconv.Itoa(i) }

// set writes a session: JSON with some text and some noise.
func (r *redisClient) set(key int) {
	session := struct {
		ID          int
		User, Token string
		Seen        int64
		Score       float64
		Text        string
	}{key, fmt.Sprintf("user%d", r.rng.IntN(1_000_000)), fmt.Sprintf("%016x%016x", r.rng.Uint64(), r.rng.Uint64()),
		1_700_000_000 + r.rng.Int64N(1<<24), r.rng.Float64(), r.text(20 + r.rng.IntN(100))}
	b, err := json.Marshal(session)
	if err != nil {
		panic(err) // numbers and strings have a form in JSON
	}
	r.command("SET", keyName(key), string(b))
}

var redisWords = strings.Fields("time person year way day thing man world life hand part child eye woman place work week case " +
	"point government company number group problem fact order invoice shipped pending customer region north south")

func (r *redisClient) text(words int) string {
	all := make([]string, words)
	for i := range all {
		all[i] = redisWords[r.rng.IntN(len(redisWords))]
	}
	return strings.Join(all, " ")
}

func (r *redisClient) command(words ...string) {
	fmt.Fprintf(r, "*%d\r\n", len(words)) // errors of a bufio.Writer stay until Flush
	for _, w := range words {
		fmt.Fprintf(r, "$%d\r\n%s\r\n", len(w), w)
	}
}

// answers sends what was written and reads the answers.
func (r *redisClient) answers(n int) error {
	if err := r.Flush(); err != nil {
		return err
	}
	for range n {
		line, err := r.in.ReadString('\n')
		if err != nil {
			return err
		}
		if line[0] == '-' {
			return errors.New("redis: " + strings.TrimSpace(line[1:]))
		}
		if size, err := strconv.Atoi(strings.TrimSpace(line[1:])); line[0] == '$' && err == nil && size >= 0 {
			if _, err := io.CopyN(io.Discard, r.in, int64(size)+2); err != nil {
				return err
			}
		}
	}
	return nil
}
