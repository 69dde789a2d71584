package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
)

// counting is a server that was written for this test in some language: GET /add?n=N adds a number,
// GET /sum tells the sum, the ticks of a timer since it started, and what a worker computed.
func counting(t *testing.T, name, file, source, command string, dump ...string) {
	t.Helper()
	port := freePort(t)
	ticks := 0
	s := server{name: name, ready: listens(port), dump: dump,
		start: func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, file), []byte(strings.ReplaceAll(source, "PORT", fmt.Sprint(port))))
			return command
		},
		work: func(t *testing.T, n int) { want(t, "add", get(t, port, fmt.Sprint("/add?n=", n)), "ok") },
		check: func(t *testing.T, n int) {
			var sum, now, worker int
			said := get(t, port, "/sum")
			if _, err := fmt.Sscan(said, &sum, &now, &worker); err != nil || sum != n*(n+1)/2 || worker != 1000 {
				t.Fatalf("%s says %q, want the sum %d and the worker's 1000: %v", name, said, n*(n+1)/2, err)
			}
			if now < ticks {
				t.Fatalf("the timer went back from %d to %d ticks", ticks, now)
			}
			ticks = now
			harness.Eventually(t, "the timer goes on", func() bool {
				var now int
				_, err := fmt.Sscan(get(t, port, "/sum"), &sum, &now)
				return err == nil && now > ticks
			})
		},
	}
	s.run(t)
}

func TestNode(t *testing.T) {
	counting(t, "node", "server.js", `
const http = require('http'), { Worker } = require('worker_threads');
let sum = 0, ticks = 0;
setInterval(() => ticks++, 20);
const w = new Worker("const { parentPort } = require('worker_threads'); parentPort.on('message', n => { let s = 0; for (let i = 0; i < n; i++) s++; parentPort.postMessage(s); })", { eval: true });
const queue = [];
w.on('message', m => queue.shift()(m));
http.createServer((req, res) => {
  const u = new URL(req.url, 'http://x');
  if (u.pathname === '/add') { sum += +u.searchParams.get('n'); res.end('ok'); return; }
  queue.push(m => res.end(sum + ' ' + ticks + ' ' + m));
  w.postMessage(1000);
}).listen(PORT, '127.0.0.1');
`, harness.Tool(t, "node")+" server.js")
}

func TestJava(t *testing.T) {
	counting(t, "java", "Server.java", `
import com.sun.net.httpserver.*;
import java.net.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
public class Server {
  static void answer(HttpExchange x, String s) throws java.io.IOException {
    x.sendResponseHeaders(200, s.length()); x.getResponseBody().write(s.getBytes()); x.close();
  }
  public static void main(String[] a) throws Exception {
    AtomicLong sum = new AtomicLong(), ticks = new AtomicLong();
    Executors.newScheduledThreadPool(1).scheduleAtFixedRate(ticks::incrementAndGet, 0, 20, TimeUnit.MILLISECONDS);
    ExecutorService pool = Executors.newFixedThreadPool(4);
    HttpServer s = HttpServer.create(new InetSocketAddress("127.0.0.1", PORT), 50);
    s.createContext("/add", x -> { sum.addAndGet(Long.parseLong(x.getRequestURI().getQuery().substring(2))); answer(x, "ok"); });
    s.createContext("/sum", x -> {
      try { answer(x, sum + " " + ticks + " " + pool.submit(() -> { int n = 0; for (int i = 0; i < 1000; i++) n++; return n; }).get()); }
      catch (Exception e) { answer(x, e.toString()); }
    });
    s.setExecutor(pool);
    s.start();
  }
}
`, harness.Tool(t, "java")+" -Xmx128m Server.java")
}

func TestRuby(t *testing.T) {
	counting(t, "ruby", "server.rb", `
require 'socket'
sum, ticks = 0, 0
Thread.new { loop { sleep 0.02; ticks += 1 } }
jobs, done = Queue.new, Queue.new
Thread.new { loop { jobs.pop.times.count.then { |n| done << n } } }
s = TCPServer.new('127.0.0.1', PORT)
loop do
  c = s.accept
  line = c.gets or (c.close; next)
  nil while (h = c.gets) && h != "\r\n"
  if line =~ /n=(\d+)/ then sum += $1.to_i; body = 'ok' else jobs << 1000; body = "#{sum} #{ticks} #{done.pop}" end
  c.write "HTTP/1.0 200 OK\r\nContent-Length: #{body.size}\r\n\r\n#{body}"
  c.close
end
`, harness.Tool(t, "ruby")+" server.rb")
}

func TestPerlServer(t *testing.T) {
	counting(t, "perl", "server.pl", `
use strict; use IO::Socket::INET; use IO::Select; use Socket; use Time::HiRes qw(time);
my ($sum, $start) = (0, time);
socketpair(my $up, my $down, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die;
$_->autoflush(1) for $up, $down;
if (!fork) { close $up; while (my $n = <$down>) { my $s = 0; $s++ for 1..$n; print $down "$s\n"; } exit }
close $down;
my $l = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => PORT, Listen => 50, ReuseAddr => 1) or die;
while (my $c = $l->accept) {
  my $line = <$c>; if (!defined $line) { close $c; next }
  while (my $h = <$c>) { last if $h eq "\r\n" }
  my $body = 'ok';
  if ($line =~ /n=(\d+)/) { $sum += $1 } else { print $up "1000\n"; my $w = <$up>; chomp $w; $body = $sum . ' ' . int((time - $start) * 50) . " $w" }
  print $c "HTTP/1.0 200 OK\r\nContent-Length: " . length($body) . "\r\n\r\n$body"; close $c;
}
`, harness.Tool(t, "perl")+" server.pl")
}

func TestAsyncio(t *testing.T) {
	counting(t, "python asyncio", "server.py", `
import asyncio, concurrent.futures
def count(n):
    return sum(1 for _ in range(n))
async def main():
    state = {"sum": 0, "ticks": 0}
    pool = concurrent.futures.ProcessPoolExecutor(2)
    async def tick():
        while True:
            await asyncio.sleep(0.02); state["ticks"] += 1
    async def serve(r, w):
        line = await r.readline()
        while await r.readline() not in (b"\r\n", b""): pass
        if b"n=" in line:
            state["sum"] += int(line.split(b"n=")[1].split()[0]); body = "ok"
        elif line:
            n = await asyncio.get_running_loop().run_in_executor(pool, count, 1000)
            body = "%d %d %d" % (state["sum"], state["ticks"], n)
        else: body = ""
        w.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode()))
        await w.drain(); w.close()
    t = asyncio.create_task(tick())
    s = await asyncio.start_server(serve, "127.0.0.1", PORT)
    await s.serve_forever()
asyncio.run(main())
`, harness.Tool(t, "python3")+" server.py", "--policy", "tcp=close") // the workers of the pool have inherited a connection that was being served
}
