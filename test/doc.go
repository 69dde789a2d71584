// Package test holds what belongs to no single package: the rules of the source tree
// (arch_test.go), the end-to-end tests on the built binary and a real mount (e2e), the
// programs they run (progs), the harness they share, and the benchmarks (bench).
package test
