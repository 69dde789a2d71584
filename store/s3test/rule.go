package s3test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Rule says which requests go wrong, and how. The zero value of a field does not restrict.
type Rule struct {
	// Which requests it is about.
	Kinds  []Kind
	Prefix string              // of the key
	Query  string              // a parameter that the query must have, such as "partNumber"
	Match  func(*Request) bool // called one request at a time; must not call the proxy

	// Which of those go wrong.
	Skip  int           // the first Skip do not
	Count int           // after Count it is over
	For   time.Duration // it is over this long after Add
	Prob  float64       // only with this probability,
	Seed  uint64        // drawn from a generator with this seed

	// What happens to them; several at once if they can go together.
	Faults []Fault
}

// Active is a rule in force.
type Active struct {
	rule Rule
	end  time.Time // zero: never
	rnd  *rand.Rand

	mu      sync.Mutex
	seen    int
	hits    int
	removed bool
}

// newActive puts a rule in force.
func newActive(r Rule) *Active {
	a := &Active{rule: r, rnd: rand.New(rand.NewPCG(r.Seed, 1))}
	if r.For > 0 {
		a.end = time.Now().Add(r.For)
	}
	return a
}

// Hits returns how many requests went wrong by this rule.
func (a *Active) Hits() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hits
}

// Remove ends the rule for new requests. Those that hang in it stay so: see Proxy.Heal.
func (a *Active) Remove() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removed = true
}

// fires tells whether a request is to go wrong, and counts it.
func (a *Active) fires(q *Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := &a.rule
	switch {
	case a.removed,
		r.Count > 0 && a.hits >= r.Count,
		!a.end.IsZero() && time.Now().After(a.end),
		len(r.Kinds) > 0 && !slices.Contains(r.Kinds, q.Kind),
		!strings.HasPrefix(q.Key, r.Prefix),
		r.Query != "" && !q.Query.Has(r.Query),
		r.Match != nil && !r.Match(q):
		return false
	}
	a.seen++
	if a.seen <= r.Skip || r.Prob > 0 && a.rnd.Float64() >= r.Prob {
		return false
	}
	a.hits++
	return true
}

// plan is what happens to one request.
type plan struct {
	delay     time.Duration
	status    int    // answer with this instead of asking the server, 0: ask
	code      string // S3 error code that goes with status
	blackHole bool
	lose      bool
	listing   *Listing
	request   bodyPlan
	response  bodyPlan
}

// bodyPlan is what happens to a body. Offsets are -1 for never.
type bodyPlan struct {
	cutAt, stallAt, flipAt int64
	rate                   int64 // bytes per second, 0: as fast as it goes
}

// newPlan returns the plan that the faults make.
func newPlan(faults []Fault) *plan {
	fine := bodyPlan{cutAt: -1, stallAt: -1, flipAt: -1}
	p := &plan{request: fine, response: fine}
	for _, f := range faults {
		f(p)
	}
	return p
}

// Fault is one thing that goes wrong with a request.
type Fault func(*plan)

// CutRequest breaks both connections, the client's and the server's, after so many bytes of
// the request's body.
func CutRequest(after int64) Fault { return func(p *plan) { p.request.cutAt = after } }

// CutResponse breaks both connections after so many bytes of the response's body. The header
// with the full length has been sent by then.
func CutResponse(after int64) Fault { return func(p *plan) { p.response.cutAt = after } }

// StallRequest stops reading the request's body after so many bytes, and keeps the
// connection: a client that has more to send hangs while it sends.
func StallRequest(after int64) Fault { return func(p *plan) { p.request.stallAt = after } }

// StallResponse stops sending the response's body after so many bytes, and keeps the
// connection: a client hangs while it reads.
func StallResponse(after int64) Fault { return func(p *plan) { p.response.stallAt = after } }

// FlipRequest changes one bit of the byte at an offset of the request's body. The server is
// to find out, by checksum or signature.
func FlipRequest(at int64) Fault { return func(p *plan) { p.request.flipAt = at } }

// FlipResponse changes one bit of the byte at an offset of the response's body. Length, ETag
// and all other headers stay as they are: only the client can find out.
func FlipResponse(at int64) Fault { return func(p *plan) { p.response.flipAt = at } }

// Answer answers with an HTTP status and an S3 error in XML, such as 503 and "SlowDown" or
// 500 and "InternalError". The server is not asked. The request's body is read first, so that
// the client sees the answer and not a broken connection.
func Answer(status int, code string) Fault {
	return func(p *plan) { p.status, p.code = status, code }
}

// Delay waits before anything is done.
func Delay(d time.Duration) Fault { return func(p *plan) { p.delay = d } }

// SlowRequest lets so many bytes of the request's body pass in a second.
func SlowRequest(rate int64) Fault { return func(p *plan) { p.request.rate = rate } }

// SlowResponse lets so many bytes of the response's body pass in a second.
func SlowResponse(rate int64) Fault { return func(p *plan) { p.response.rate = rate } }

// BlackHole takes the request with its body and never answers. The server is not asked.
func BlackHole() Fault { return func(p *plan) { p.blackHole = true } }

// LoseAnswer lets the server do what is asked and breaks the client's connection instead of
// answering: the client cannot know that it was done.
func LoseAnswer() Fault { return func(p *plan) { p.lose = true } }

// StaleList answers a listing (version 2) from a snapshot: what came later is not in it and
// what was deleted still is.
func StaleList(l *Listing) Fault { return func(p *plan) { p.listing = l } }
