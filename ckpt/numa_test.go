package ckpt

import "testing"

func TestFindPolicy(t *testing.T) {
	const plain = "55cf94e62000 default file=/usr/bin/head mapped=2 N0=2\n7ffc5d8fe000 default stack anon=3\n"
	if addr, p := findPolicy([]byte(plain)); p != "" {
		t.Errorf("got %x %q", addr, p)
	}
	if addr, p := findPolicy([]byte(plain + "7f0000000000 interleave:0-1 anon=3\n")); addr != 0x7f0000000000 || p != "interleave:0-1" {
		t.Errorf("got %x %q", addr, p)
	}
	if addr, p := findPolicy([]byte("7f0000000000 bind=static:0\n")); addr != 0x7f0000000000 || p != "bind=static:0" {
		t.Errorf("got %x %q", addr, p)
	}
	for _, odd := range []string{"", "\n", "x y\n", "1000\n"} {
		if _, p := findPolicy([]byte(odd)); p != "" {
			t.Errorf("%q: got %q", odd, p)
		}
	}
}
