package ptrace

import (
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// goTargetMain is a Go program as a target: goroutines that compute with growing stacks
// under garbage collection, talk over channels and sleep, and check themselves.
func goTargetMain() {
	f, err := os.OpenFile(os.Args[1], os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		damage("%v", err)
	}
	if err := f.Truncate(4096); err != nil {
		damage("%v", err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		damage("%v", err)
	}
	slots := unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), 512)
	for i := range 3 {
		go computeGo(&slots[i], i+1)
	}
	ch := make(chan int)
	go pingGo(&slots[3], ch)
	go func() {
		for n := 0; ; n++ {
			if got := <-ch; got != n {
				damage("got %d from the channel, want %d", got, n)
			}
		}
	}()
	runtime.LockOSThread()
	for {
		var mask uint64
		unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 0, 0, uintptr(unsafe.Pointer(&mask)), 8, 0, 0)
		if mask != 0 {
			damage("signal mask %#x", mask)
		}
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
			damage("a child appeared: %v", err)
		}
		slots[4]++
		time.Sleep(3 * time.Millisecond)
	}
}

func damage(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "DAMAGE in the Go target: "+format+"\n", args...)
	os.Exit(1)
}

func pingGo(slot *uint64, ch chan int) {
	for n := 0; ; n++ {
		ch <- n
		*slot++
		if n%100 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

func computeGo(slot *uint64, seed int) {
	want := deep(seed, 200)
	var keep [][]byte
	for {
		if got := deep(seed, 200); got != want {
			damage("computed %v, want %v", got, want)
		}
		keep = append(keep, make([]byte, 4096))
		if len(keep) == 64 {
			keep = nil
		}
		done := make(chan float64)
		go func() { done <- deep(seed, 2000) }() // a fresh, small stack
		<-done
		*slot++
	}
}

// deep grows the stack and computes in floating point.
func deep(seed, n int) float64 {
	var pad [8]float64
	for i := range pad {
		pad[i] = float64(seed*n+i) / 3
	}
	if n == 0 {
		return pad[1]
	}
	return deep(seed, n-1)*0.5 + pad[n%8]
}
