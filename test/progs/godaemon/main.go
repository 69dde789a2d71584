// Godaemon is a test program: a Go process with goroutines, timers, channels, a netpoller
// that watches pipes, and a heap that is collected all the time. Its contract is that of
// ../prog.h: READY RESULT GO.
package main

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// daemon is the state that must survive.
type daemon struct {
	result  string
	ticks   atomic.Int64
	echoes  atomic.Int64
	rounds  atomic.Int64
	collect atomic.Int64
	stop    chan struct{}
	wg      sync.WaitGroup
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: godaemon READY RESULT GO")
		os.Exit(2)
	}
	d := &daemon{result: os.Args[2], stop: make(chan struct{})}
	pid := os.Getpid()
	hup := make(chan os.Signal, 8)
	signal.Notify(hup, syscall.SIGHUP)
	d.wg.Add(4)
	go d.ticker()
	go d.echo()
	go d.compute()
	go d.garbage()
	d.progress()
	d.write(os.Args[1], "ready\n")

	for !exists(os.Args[3]) {
		time.Sleep(5 * time.Millisecond)
	}
	d.progress()
	if os.Getpid() != pid {
		d.fail("pid %d was %d", os.Getpid(), pid)
	}
	syscall.Kill(pid, syscall.SIGHUP)
	<-hup
	select {
	case s := <-hup:
		d.fail("a second signal came: %v", s)
	default:
	}
	close(d.stop)
	d.wg.Wait()
	d.write(d.result, "ok\n")
}

// progress waits until every part has done more work.
func (d *daemon) progress() {
	for _, c := range []*atomic.Int64{&d.ticks, &d.echoes, &d.rounds, &d.collect} {
		for from := c.Load(); c.Load() < from+3; {
			time.Sleep(time.Millisecond)
		}
	}
}

func (d *daemon) ended() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

// ticker uses runtime timers of several lengths.
func (d *daemon) ticker() {
	defer d.wg.Done()
	t := time.NewTicker(3 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			d.ticks.Add(1)
		case <-time.After(10 * time.Minute):
			d.fail("a timer of ten minutes ran off")
		case <-d.stop:
			return
		}
	}
}

// echo sends lines through two pipes that the netpoller watches.
func (d *daemon) echo() {
	defer d.wg.Done()
	r1, w1, err := os.Pipe()
	d.must(err)
	r2, w2, err := os.Pipe()
	d.must(err)
	go func() {
		for s := bufio.NewScanner(r1); s.Scan(); {
			fmt.Fprintln(w2, strings.ToUpper(s.Text()))
		}
		w2.Close()
	}()
	back := bufio.NewReader(r2)
	for i := 0; !d.ended(); i++ {
		line := fmt.Sprintf("line %d", i)
		_, err := fmt.Fprintln(w1, line)
		d.must(err)
		got, err := back.ReadString('\n')
		d.must(err)
		if got != strings.ToUpper(line)+"\n" {
			d.fail("echo of %q is %q", line, got)
		}
		d.echoes.Add(1)
		time.Sleep(time.Millisecond)
	}
	w1.Close()
}

// compute keeps a CPU busy with a result that is known.
func (d *daemon) compute() {
	defer d.wg.Done()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * 7)
	}
	want := crc32.ChecksumIEEE(data)
	for !d.ended() {
		if got := crc32.ChecksumIEEE(data); got != want {
			d.fail("checksum %#x, not %#x", got, want)
		}
		if n := deep(500); n != 500 {
			d.fail("recursion gave %d", n)
		}
		d.rounds.Add(1)
	}
}

// deep makes a goroutine's stack grow and shrink.
func deep(n int) int {
	var room [256]byte
	if n == 0 {
		return int(room[0])
	}
	return deep(n-1) + 1
}

// garbage makes work for the collector and checks what has to survive.
func (d *daemon) garbage() {
	defer d.wg.Done()
	keep := map[int]string{}
	for i := 0; !d.ended(); i++ {
		keep[i%1000] = strings.Repeat("x", i%100)
		if i%1000 == 999 {
			runtime.GC()
			for k, v := range keep {
				if len(v) != k%100 {
					d.fail("map: %d has %d bytes", k, len(v))
				}
			}
			d.collect.Add(1)
		}
	}
}

func (d *daemon) must(err error) {
	if err != nil {
		d.fail("%v", err)
	}
}

func (d *daemon) fail(format string, a ...any) {
	d.write(d.result, "fail: "+fmt.Sprintf(format, a...)+"\n")
	os.Exit(1)
}

func (d *daemon) write(path, text string) {
	if os.WriteFile(path+".tmp", []byte(text), 0o644) != nil || os.Rename(path+".tmp", path) != nil {
		os.Exit(3)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
