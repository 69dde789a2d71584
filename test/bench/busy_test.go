package bench

import (
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/test/harness"
	"golang.org/x/sys/unix"
)

// BenchmarkBusy takes checkpoints of a program that counts, of several nice values, on an idle
// machine and beside two busy loops for each processor. "xidle" compares the pauses of the
// two, and "xunlent" the busy one to that without CAP_SYS_NICE, when nobody is hurried.
func BenchmarkBusy(b *testing.B) {
	for _, nice := range []int{0, 10, 19} {
		b.Run("nice"+strconv.Itoa(nice), func(b *testing.B) {
			r := harness.Start(b, "counter")
			if err := unix.Setpriority(unix.PRIO_PROCESS, r.PID, nice); err != nil {
				b.Fatal(err)
			}
			const least = 9
			idle := pauses(b, r, least)
			for range 2 * runtime.NumCPU() {
				harness.Background(b, exec.Command("sh", "-c", "while :; do :; done"))
			}
			var busy, unlent []float64
			for b.Loop() {
				busy = append(busy, pauses(b, r, 1)...)
				unlent = append(unlent, pauses(b, r, 1, "setpriv", "--bounding-set=-sys_nice")...)
			}
			b.ReportMetric(middle(busy)*1e6, "pause-ns")
			b.ReportMetric(middle(busy)/middle(idle), "xidle")
			b.ReportMetric(middle(busy)/middle(unlent), "xunlent")
			r.Kill()
		})
	}
}

var stillFor = regexp.MustCompile(`still for ([0-9.]+) ms`)

// pauses takes n checkpoints, by a command that is put before ours, and returns how long each
// of them says that the program was still, in milliseconds.
func pauses(b *testing.B, r *harness.Program, n int, before ...string) (ms []float64) {
	b.Helper()
	for range n {
		argv := append(before, harness.Binary(), "dump", strconv.Itoa(r.PID), "-v", "-o", "/dev/null")
		said := harness.Must(b, argv...)
		m := stillFor.FindStringSubmatch(said.Stderr + said.Stdout)
		if m == nil {
			b.Fatalf("%s does not say how long it was: %v", strings.Join(argv, " "), said)
		}
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		ms = append(ms, v)
	}
	return ms
}
