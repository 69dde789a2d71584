package s3test

import (
	"encoding/xml"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// Proxy stands between a client and a server and does what its rules say.
type Proxy struct {
	Endpoint string // http://127.0.0.1:port

	server    *Server
	target    string // Server.Endpoint without the scheme
	transport *http.Transport
	gate      *gate

	mu     sync.Mutex
	rules  []*Active
	counts map[Kind]int
	heal   chan struct{} // closed to end all that hangs, then a new one

	up, down atomic.Int64 // bytes of bodies
}

// Counts is what went through a proxy.
type Counts struct {
	Requests map[Kind]int // all that came in, those that went wrong too
	Up       int64        // bytes of request bodies, as they are on the wire
	Down     int64        // bytes of response bodies from the server
}

// Proxy runs a proxy before the server until the test ends.
func (s *Server) Proxy(t testing.TB) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		Endpoint:  "http://" + l.Addr().String(),
		server:    s,
		target:    strings.TrimPrefix(s.Endpoint, "http://"),
		transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Second},
		gate:      &gate{Listener: l, open: map[net.Conn]bool{}},
		counts:    map[Kind]int{},
		heal:      make(chan struct{}),
	}
	srv := &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(p.gate) // ends with ErrServerClosed
	}()
	t.Cleanup(func() {
		p.Heal()
		srv.Close()
		<-done
		p.transport.CloseIdleConnections()
	})
	return p
}

// Env is Server.Env with the proxy as the endpoint.
func (p *Proxy) Env() []string {
	s := *p.server
	s.Endpoint = p.Endpoint
	return s.Env()
}

// Client returns a client that talks through the proxy. Credentials and region need not be given.
func (p *Proxy) Client(t testing.TB, o minio.Options) *minio.Client {
	t.Helper()
	return p.server.client(t, p.Endpoint, o)
}

// Add puts a rule in force. If several want a request, the one added first gets it.
func (p *Proxy) Add(r Rule) *Active {
	a := newActive(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, a)
	return a
}

// Heal drops all rules and breaks the connections that hang in one.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = nil
	close(p.heal)
	p.heal = make(chan struct{})
}

// Outage makes the service unreachable, or reachable again: open connections are reset and
// new ones too.
func (p *Proxy) Outage(on bool) { p.gate.shut(on) }

// Counts returns what went through since the start or the last ResetCounts.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Counts{Requests: maps.Clone(p.counts), Up: p.up.Load(), Down: p.down.Load()}
}

// ResetCounts returns the counts and starts again from zero.
func (p *Proxy) ResetCounts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := Counts{Requests: p.counts, Up: p.up.Swap(0), Down: p.down.Swap(0)}
	p.counts = map[Kind]int{}
	return c
}

// plan counts a request and returns what is to happen to it, and what ends its hanging.
func (p *Proxy) plan(q *Request) (*plan, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[q.Kind]++
	// Rules that do not fire count too, so each is asked until one does.
	if i := slices.IndexFunc(p.rules, func(a *Active) bool { return a.fires(q) }); i >= 0 {
		return newPlan(p.rules[i].rule.Faults), p.heal
	}
	return newPlan(nil), p.heal
}

// ServeHTTP does what is planned for a request, and as a rule hands it on.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := describe(r)
	plan, heal := p.plan(q)
	in := &body{Reader: r.Body, Closer: r.Body, plan: plan.request, count: &p.up, heal: heal}
	if plan.delay > 0 {
		pause(r, plan.delay, heal)
	}
	switch {
	case plan.blackHole:
		_, _ = io.Copy(io.Discard, in) // the client may give up
		hang(r, heal)
	case plan.status != 0:
		_, _ = io.Copy(io.Discard, in)
		writeError(w, q, plan.status, plan.code)
		return
	case plan.listing != nil && q.Query.Get("list-type") == "2":
		plan.listing.answer(w, q)
		return
	}
	resp, err := p.transport.RoundTrip(onward(r, in, p.target))
	if err != nil {
		panic(http.ErrAbortHandler) // cut, here or by the server
	}
	defer resp.Body.Close()
	out := &body{Reader: resp.Body, Closer: resp.Body, plan: plan.response, count: &p.down, heal: heal}
	if plan.lose {
		_, _ = io.Copy(io.Discard, out) // the server shall see that it was done
		panic(http.ErrAbortHandler)
	}
	send(w, resp, out)
}

// pause waits for a time, unless the client gives up or the proxy is healed.
func pause(r *http.Request, d time.Duration, heal <-chan struct{}) {
	select {
	case <-time.After(d):
	case <-heal:
	case <-r.Context().Done():
	}
}

// hang waits until the client gives up or the proxy is healed, and breaks the connection.
func hang(r *http.Request, heal <-chan struct{}) {
	select {
	case <-heal:
	case <-r.Context().Done():
	}
	panic(http.ErrAbortHandler)
}

// onward returns the request for the server. Host stays: it is part of what was signed.
func onward(r *http.Request, in io.ReadCloser, target string) *http.Request {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", target
	out.Header.Del("Connection")
	out.Body = in
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	return out
}

// send hands the response to the client.
func send(w http.ResponseWriter, resp *http.Response, out *body) {
	maps.Copy(w.Header(), resp.Header)
	w.Header().Del("Connection")
	w.WriteHeader(resp.StatusCode)
	to := io.Writer(w)
	if out.plan.prompt() {
		flusher := http.NewResponseController(w)
		_ = flusher.Flush() // a client that is gone is seen by Copy
		to = writerFunc(func(b []byte) (int, error) {
			n, err := w.Write(b)
			if err == nil {
				err = flusher.Flush()
			}
			return n, err
		})
	}
	if _, err := io.Copy(to, out); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// writerFunc is a function as a writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// s3Error is the body of an answer that is an error.
type s3Error struct {
	XMLName   xml.Name `xml:"Error"`
	Code      string
	Message   string
	Bucket    string `xml:"BucketName"`
	Key       string
	RequestID string `xml:"RequestId"`
}

// writeError answers with an error.
func writeError(w http.ResponseWriter, q *Request, status int, code string) {
	text, err := xml.Marshal(s3Error{Code: code, Message: "made by s3test", Bucket: q.Bucket, Key: q.Key, RequestID: "s3test"})
	if err != nil {
		panic(err) // strings only
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = w.Write(append([]byte(xml.Header), text...)) // the client may be gone
}
