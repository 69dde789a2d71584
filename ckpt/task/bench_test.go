package task

import (
	"os"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// BenchmarkReadThreadOutside is part of the time that a tree stands still, for each thread.
func BenchmarkReadThreadOutside(b *testing.B) {
	pid := os.Getpid()
	for b.Loop() {
		var th image.Thread
		if err := ReadThreadOutside(pid, pid, &th, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadTaskOutside is the same for each process.
func BenchmarkReadTaskOutside(b *testing.B) {
	pid := os.Getpid()
	for b.Loop() {
		if err := ReadTaskOutside(pid, &image.Task{}, &image.MM{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck does not stop anything, but explain and checkpoint wait for it.
func BenchmarkCheck(b *testing.B) {
	pid := os.Getpid()
	for b.Loop() {
		if err := Check(pid, func(image.Finding) {}); err != nil {
			b.Fatal(err)
		}
	}
}
