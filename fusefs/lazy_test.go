package fusefs_test

import (
	"strings"
	"testing"
)

// TestRestoreLazy writes images to restore/lazy/, by copying and by a link into the store, and takes them
// away while memory is still to come.
func TestRestoreLazy(t *testing.T) {
	m := mount(t)
	m.ok(target(t), "cp $MNT/ckpt/$PID/image img")
	m.ok(0, "until test -e $MNT/images/*/image; do sleep 0.05; done")
	for _, tc := range []struct{ name, line string }{
		{"copied", "cat img > $MNT/restore/lazy/f"},
		{"linked", "cp $MNT/images/*/image $MNT/restore/lazy/f"},
		{"compressed", "zstd -q img -c > $MNT/restore/lazy/f"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.t = t
			m.set("bring", 0)
			m.ok(0, tc.line)
			if s := m.ok(0, "cat $MNT/restore/lazy/f.status"); !strings.Contains(s, `"state": "restored"`) || !strings.Contains(s, `"missing": 5`) {
				t.Errorf("while memory is to come: %s", s)
			}
			m.ok(0, "! test -e $MNT/restore/f && ls $MNT/restore/lazy | grep -x f.status && ! ls $MNT/restore | grep .")
			m.set("bring", 1)
			eventually(t, "all memory has come", func() bool {
				s := m.ok(0, "cat $MNT/restore/lazy/f.status $MNT/restore/lazy/f.log")
				return strings.Contains(s, `"done": true`) && strings.Contains(s, "all memory has come")
			})
			if s := m.ok(0, "cat $MNT/restore/lazy/f.log"); strings.Contains(s, "cannot be read") || !strings.Contains(s, "each part is verified") {
				t.Errorf("the log: %s", s)
			}
			m.ok(0, "rm $MNT/restore/lazy/f; ! ls $MNT/restore/lazy | grep .")
		})
	}
	m.t = t
	m.ok(0, "cp $MNT/images/*/image $MNT/restore/lazy/g; rm -r $MNT/restore/lazy/* $MNT/images/*; ! ls $MNT/restore/lazy | grep .")
	m.fails(0, "rmdir $MNT/restore/lazy", "Operation not permitted")
	m.fails(0, "mkdir $MNT/restore/lazy", "File exists")
	m.fails(0, "cat img > $MNT/restore/lazy", "Is a directory")
	m.fails(0, "mv $MNT/restore/lazy $MNT/restore/x", "Operation not permitted")
}
