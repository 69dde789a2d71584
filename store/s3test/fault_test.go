package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// bench is a server with an object of 1 MB in it, a proxy before it and a client that does
// not retry.
type bench struct {
	*Server
	proxy  *Proxy
	client *minio.Client // through the proxy
	direct *minio.Client
	data   []byte // of the object "k"
}

func newBench(t testing.TB) *bench {
	t.Helper()
	s := Start(t)
	p := s.Proxy(t)
	b := &bench{Server: s, proxy: p, client: once(t, p), direct: s.Client(t), data: randomBytes(4, 1_000_000)}
	mustPut(t, b.direct, s.Bucket, "k", b.data)
	return b
}

// breaks adds a rule for one request.
func (b *bench) breaks(k Kind, faults ...Fault) *Active {
	return b.proxy.Add(Rule{Kinds: []Kind{k}, Count: 1, Faults: faults})
}

// mustHit fails unless a rule was applied once, and drops all rules.
func (b *bench) mustHit(t testing.TB, a *Active) {
	t.Helper()
	if a.Hits() != 1 {
		t.Errorf("the rule was applied %d times, want once", a.Hits())
	}
	b.proxy.Heal()
}

func TestCutResponse(t *testing.T) {
	b := newBench(t)
	rule := b.breaks(Get, CutResponse(123_456))
	got, err := get(t, b.client, b.Bucket, "k", 0, 0)
	if err == nil || !bytes.Equal(got, b.data[:123_456]) {
		t.Errorf("%d bytes and %v, want just 123456 and an error", len(got), err)
	}
	b.mustHit(t, rule)
	mustHold(t, b.client, b.Bucket, "k", b.data)
}

func TestCutRequest(t *testing.T) {
	b := newBench(t)
	rule := b.breaks(Put, CutRequest(500_000))
	if err := put(t, b.client, b.Bucket, "new", b.data, minio.PutObjectOptions{}); err == nil {
		t.Error("a PUT that was cut is a success")
	}
	b.mustHit(t, rule)
	mustLack(t, b.direct, b.Bucket, "new")
	if up := b.proxy.Counts().Up; up != 500_000 {
		t.Errorf("%d bytes went up, want 500000", up)
	}
	// What was there stays if the new one is cut.
	rule = b.breaks(Put, CutRequest(0))
	if err := put(t, b.client, b.Bucket, "k", []byte("short"), minio.PutObjectOptions{}); err == nil {
		t.Error("a PUT that was cut at once is a success")
	}
	b.mustHit(t, rule)
	mustHold(t, b.direct, b.Bucket, "k", b.data)
}

func TestAnswer(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		status int
		code   string
	}{{503, "SlowDown"}, {500, "InternalError"}} {
		rule := b.breaks(Put, Answer(c.status, c.code))
		err := put(t, b.client, b.Bucket, "new", b.data, minio.PutObjectOptions{})
		var e minio.ErrorResponse
		if !errors.As(err, &e) || e.StatusCode != c.status || e.Code != c.code || e.Key != "new" {
			t.Errorf("%v (%+v), want %d %s", err, e, c.status, c.code)
		}
		b.mustHit(t, rule)
		mustLack(t, b.direct, b.Bucket, "new")
	}
}

// TestBurst is ridden out by a client with patience and not by one without.
func TestBurst(t *testing.T) {
	b := newBench(t)
	rule := b.proxy.Add(Rule{Skip: 1, Count: 3, Faults: []Fault{Answer(503, "SlowDown")}})
	mustHold(t, b.client, b.Bucket, "k", b.data) // is let through
	patient := b.proxy.Client(t, minio.Options{MaxRetries: 5})
	mustHold(t, patient, b.Bucket, "k", b.data)
	if rule.Hits() != 3 {
		t.Errorf("%d hits, want 3", rule.Hits())
	}
	rule = b.proxy.Add(Rule{Faults: []Fault{Answer(503, "SlowDown")}})
	if _, err := get(t, b.client, b.Bucket, "k", 0, 0); codeOf(err) != "SlowDown" {
		t.Errorf("%v, want SlowDown", err)
	}
	rule.Remove()
	mustHold(t, b.client, b.Bucket, "k", b.data)
}

// TestLoseAnswer shows the trap: what failed was done.
func TestLoseAnswer(t *testing.T) {
	b := newBench(t)
	rule := b.breaks(Put, LoseAnswer())
	if err := put(t, b.client, b.Bucket, "new", b.data, minio.PutObjectOptions{}); err == nil {
		t.Error("a PUT without an answer is a success")
	}
	b.mustHit(t, rule)
	mustHold(t, b.direct, b.Bucket, "new", b.data)
}

func TestFlipResponse(t *testing.T) {
	b := newBench(t)
	rule := b.breaks(RangeGet, FlipResponse(100))
	got, err := get(t, b.client, b.Bucket, "k", 1000, 1999)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(b.data[1000:2000])
	want[100] ^= 1
	if !bytes.Equal(got, want) {
		t.Error("not the one bit that was to be flipped")
	}
	b.mustHit(t, rule)
	mustHold(t, b.client, b.Bucket, "k", b.data)
}

// TestFlipRequest shows which ways to send a body let the server find a wrong byte.
func TestFlipRequest(t *testing.T) {
	b := newBench(t)
	sums := b.proxy.Client(t, minio.Options{MaxRetries: 1, TrailingHeaders: true})
	for _, c := range []struct {
		name   string
		client *minio.Client
		o      minio.PutObjectOptions
		code   string // "": the server cannot know
	}{
		{"signed pieces", b.client, minio.PutObjectOptions{}, minio.SignatureDoesNotMatch},
		{"MD5", b.client, minio.PutObjectOptions{SendContentMd5: true, DisableContentSha256: true}, "BadDigest"},
		{"CRC-32C after the body", sums, minio.PutObjectOptions{Checksum: minio.ChecksumCRC32C, DisableContentSha256: true}, "BadDigest"},
		{"CRC-32C in a header", sums, crcInHeader(b.data), "BadDigest"},
		{"nothing", b.client, minio.PutObjectOptions{DisableContentSha256: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := put(t, c.client, b.Bucket, "fine", b.data, c.o); err != nil {
				t.Fatalf("without a fault: %v", err)
			}
			mustHold(t, b.direct, b.Bucket, "fine", b.data)
			// So near the end that the server has the rest when it finds the byte: it closes the
			// connection over more than 256 KiB that it did not read, and its answer may be lost.
			rule := b.breaks(Put, FlipRequest(950_000))
			key := "flipped by " + c.name
			err := put(t, c.client, b.Bucket, key, b.data, c.o)
			if codeOf(err) != c.code {
				t.Errorf("%v (code %q), want %q", err, codeOf(err), c.code)
			}
			b.mustHit(t, rule)
			if c.code != "" {
				mustLack(t, b.direct, b.Bucket, key)
				return
			}
			if got, err := get(t, b.direct, b.Bucket, key, 0, 0); err != nil || bytes.Equal(got, b.data) {
				t.Errorf("stored as it was sent, %v", err)
			}
		})
	}
}

// crcInHeader has a PUT checked by a CRC-32C that is known before. minio-go sends what is
// called like a checksum as it is.
func crcInHeader(data []byte) minio.PutObjectOptions {
	sum := minio.ChecksumCRC32C.ChecksumBytes(data)
	return minio.PutObjectOptions{DisableContentSha256: true, UserMetadata: map[string]string{"X-Amz-Checksum-Crc32c": sum.Encoded()}}
}

// TestRetriedPut shows ways to send a body that minio-go can send once more. A checksum after
// the body (PutObjectOptions.Checksum) is none: v7.4.1 goes on counting where it broke off.
func TestRetriedPut(t *testing.T) {
	b := newBench(t)
	c := b.proxy.Client(t, minio.Options{MaxRetries: 3, TrailingHeaders: true})
	for name, o := range map[string]minio.PutObjectOptions{
		"signed pieces":       {},
		"MD5":                 {SendContentMd5: true, DisableContentSha256: true},
		"CRC-32C in a header": crcInHeader(b.data),
	} {
		for _, f := range []Fault{Answer(503, "SlowDown"), CutRequest(300_000), LoseAnswer()} {
			rule := b.breaks(Put, f)
			if err := put(t, c, b.Bucket, "again", b.data, o); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			b.mustHit(t, rule)
			mustHold(t, b.direct, b.Bucket, "again", b.data)
		}
	}
}

// TestOverwrite reads an object while a new one is on its way to the same key.
func TestOverwrite(t *testing.T) {
	b := newBench(t)
	later := randomBytes(6, 1_000_000)
	rule := b.breaks(Put, StallRequest(500_000))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := b.client.PutObject(ctx, b.Bucket, "k", bytes.NewReader(later), int64(len(later)), minio.PutObjectOptions{DisableMultipart: true})
		done <- err
	}()
	for b.proxy.Counts().Up < 500_000 {
		time.Sleep(time.Millisecond)
	}
	mustHold(t, b.direct, b.Bucket, "k", b.data)
	if got := keys(t, b.direct, b.Bucket, minio.ListObjectsOptions{Recursive: true}); !slices.Equal(got, []string{"k"}) {
		t.Errorf("LIST in the middle of a PUT: %q", got)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a PUT that was given up is a success")
	}
	b.mustHit(t, rule)
	mustHold(t, b.direct, b.Bucket, "k", b.data)
	mustPut(t, b.client, b.Bucket, "k", later)
	mustHold(t, b.direct, b.Bucket, "k", later)
}

func TestStaleList(t *testing.T) {
	b := newBench(t)
	list := func() string {
		return strings.Join(keys(t, b.client, b.Bucket, minio.ListObjectsOptions{Recursive: true}), " ")
	}
	snap := b.Snapshot(t)
	b.proxy.Add(Rule{Kinds: []Kind{List}, Count: 2, Faults: []Fault{StaleList(snap)}})
	mustPut(t, b.client, b.Bucket, "later", nil)
	if err := b.client.RemoveObject(t.Context(), b.Bucket, "k", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := list() + ", " + list() + ", " + list(); got != "k, k, later" {
		t.Errorf("three listings show %s", got)
	}
	b.proxy.Add(Rule{Kinds: []Kind{List}, For: time.Nanosecond, Faults: []Fault{StaleList(snap)}})
	time.Sleep(time.Millisecond)
	if got := list(); got != "later" {
		t.Errorf("after its time the rule still shows %s", got)
	}
}

func TestOutage(t *testing.T) {
	b := newBench(t)
	rule := b.breaks(Get, StallResponse(1000))
	done := make(chan error, 1)
	go func() {
		_, err := get(t, b.client, b.Bucket, "k", 0, 0)
		done <- err
	}()
	for rule.Hits() == 0 {
		time.Sleep(time.Millisecond)
	}
	b.proxy.Outage(true)
	if err := <-done; err == nil {
		t.Error("a GET outlived the outage")
	}
	if err := put(t, b.client, b.Bucket, "new", b.data, minio.PutObjectOptions{}); err == nil {
		t.Error("a PUT in an outage is a success")
	}
	b.proxy.Outage(false)
	b.mustHit(t, rule)
	mustLack(t, b.direct, b.Bucket, "new")
	mustHold(t, b.client, b.Bucket, "k", b.data)
}

// TestRule checks which requests a rule takes.
func TestRule(t *testing.T) {
	hits := func(r Rule, keys ...string) string {
		a := newActive(r)
		var list []string
		for _, k := range keys {
			if a.fires(&Request{Kind: Put, Key: k}) {
				list = append(list, k)
			}
		}
		return fmt.Sprint(list)
	}
	abc := []string{"a1", "b1", "a2", "b2", "a3", "b3"}
	for _, c := range []struct {
		rule Rule
		want string
	}{
		{Rule{}, "[a1 b1 a2 b2 a3 b3]"},
		{Rule{Kinds: []Kind{Get, Put}, Prefix: "b"}, "[b1 b2 b3]"},
		{Rule{Kinds: []Kind{Get}}, "[]"},
		{Rule{Prefix: "a", Skip: 1, Count: 1}, "[a2]"},
		{Rule{Query: "partNumber"}, "[]"},
		{Rule{Match: func(q *Request) bool { return q.Key > "a3" }}, "[b1 b2 b3]"},
	} {
		if got := hits(c.rule, abc...); got != c.want {
			t.Errorf("%+v takes %s, want %s", c.rule, got, c.want)
		}
	}
	many := make([]string, 10_000)
	one, same, other := hits(Rule{Prob: 0.25, Seed: 1}, many...), hits(Rule{Prob: 0.25, Seed: 1}, many...), hits(Rule{Prob: 0.25, Seed: 2}, many...)
	if one != same || one == other {
		t.Error("equal seeds must draw equally and others not")
	}
	if n := len(one) - 1; n < 2300 || n > 2700 {
		t.Errorf("%d of 10000 with probability 1/4", n)
	}
}

// TestSeveralRules gives a request to the first rule that takes it.
func TestSeveralRules(t *testing.T) {
	b := newBench(t)
	first := b.breaks(Get, Answer(500, "InternalError"))
	second := b.proxy.Add(Rule{Match: func(q *Request) bool { return q.Kind == Get }, Count: 1, Faults: []Fault{Answer(503, "SlowDown")}})
	for i, want := range []string{"InternalError", "SlowDown", ""} {
		if _, err := get(t, b.client, b.Bucket, "k", 0, 0); codeOf(err) != want {
			t.Errorf("GET %d: %v, want %q", i, err, want)
		}
	}
	if first.Hits() != 1 || second.Hits() != 1 {
		t.Errorf("%d and %d hits, want 1 and 1", first.Hits(), second.Hits())
	}
}
