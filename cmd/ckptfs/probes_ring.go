package main

import (
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/kind"
	"github.com/ckptfs/ckptfs/ckpt/kmem"
)

// probeRing makes an io_uring.
func probeRing(int) (string, error) {
	return "works", kind.ProbeRing(0)
}

// probeMemory reads this process in the kernel's memory.
func probeMemory(int) (string, error) {
	m, err := kmem.Open()
	if err != nil {
		return "", err
	}
	if _, err := m.Threads(os.Getpid()); err != nil {
		return "", err
	}
	if _, err := m.Descriptors(os.Getpid()); err != nil {
		return "", err
	}
	if _, err := m.AIOs(os.Getpid()); err != nil {
		return "", err
	}
	if !m.Has("io_ring_ctx.nr_req_allocated") {
		return "", fmt.Errorf("this kernel does not count the requests of an io_uring (Linux 6.16 does)")
	}
	return "works", nil
}
