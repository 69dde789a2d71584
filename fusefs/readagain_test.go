package fusefs_test

import "testing"

// TestReadAgain reads a stored image over and over, in several ways, and under another name: past the page cache, through it,
// and out of it. One that takes its name is another one.
func TestReadAgain(t *testing.T) {
	m := mount(t)
	pid := target(t)
	m.ok(pid, "cat $MNT/ckpt/$PID/image > a; mv $MNT/images/root* $MNT/images/a; cat $MNT/ckpt/$PID/image > b; mv $MNT/images/root* $MNT/images/b; ! cmp -s a b")
	again := `for i in 1 2 3; do cmp a $MNT/images/$NAME/image; done
cat $MNT/images/$NAME/image | cmp - a; dd if=$MNT/images/$NAME/image of=d bs=17k skip=3 status=none; tail -c +$((17 * 1024 * 3 + 1)) a | cmp - d
python3 -c '
import mmap, os, sys
f = open(sys.argv[1], "rb"); m = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
assert m[:] == open("a", "rb").read()' $MNT/images/$NAME/image
`
	m.ok(0, "set -e; NAME=a\n"+again+"mv $MNT/images/a $MNT/images/c; NAME=c\n"+again)
	m.ok(0, "set -e; cat $MNT/images/b/image > /dev/null; mv $MNT/images/b $MNT/images/a; for i in 1 2 3; do cmp b $MNT/images/a/image; done")
	m.ok(0, "set -e; rm -r $MNT/images/a; mv $MNT/images/c $MNT/images/a; for i in 1 2; do cmp a $MNT/images/a/image; done")
}
