// Gohttp is a test program: an HTTP server, which Go has listen by MPTCP, and twenty clients of it with
// connections that are kept alive, all in one process and busy all the time. Its contract is that of
// ../prog.h: READY RESULT GO. With "server" and an address it is only a server, for clients elsewhere.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "server" {
		panic(http.ListenAndServe(os.Args[2], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.URL.Path)
		})))
	}
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: gohttp READY RESULT GO")
		os.Exit(2)
	}
	end := func(text string) {
		if err := os.WriteFile(os.Args[2]+".tmp", []byte(text+"\n"), 0o644); err != nil {
			panic(err)
		}
		if err := os.Rename(os.Args[2]+".tmp", os.Args[2]); err != nil {
			panic(err)
		}
	}
	fail := func(format string, args ...any) {
		end("fail: " + fmt.Sprintf(format, args...))
		os.Exit(1)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail("listen: %v", err)
	}
	var served, asked atomic.Int64
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		fmt.Fprint(w, r.URL.Query().Get("n"))
	}))
	var stop atomic.Bool
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			for n := i; !stop.Load(); n += 20 {
				res, err := c.Get(fmt.Sprintf("http://%s/?n=%d", l.Addr(), n))
				if err != nil {
					fail("client %d: %v", i, err)
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || string(b) != strconv.Itoa(n) {
					fail("client %d: asked for %d, was told %q: %v", i, n, b, err)
				}
				asked.Add(1)
				time.Sleep(time.Millisecond)
			}
		})
	}
	for asked.Load() < 100 {
		time.Sleep(time.Millisecond)
	}
	if err := os.WriteFile(os.Args[1], []byte("ready\n"), 0o644); err != nil {
		fail("%v", err)
	}
	for {
		if _, err := os.Stat(os.Args[3]); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	for more := asked.Load() + 1000; asked.Load() < more; {
		time.Sleep(time.Millisecond)
	}
	stop.Store(true)
	clients.Wait()
	if a, s := asked.Load(), served.Load(); a != s {
		fail("%d answers to %d questions", s, a)
	}
	end("ok")
}
