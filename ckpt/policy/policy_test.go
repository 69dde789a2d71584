package policy

import (
	"strings"
	"testing"
)

func TestSet(t *testing.T) {
	s := Set{}
	if got := s.Get("files"); got != "changed" {
		t.Errorf("default of files: %q", got)
	}
	if err := s.Add("files=strict"); err != nil || s.Get("files") != "strict" {
		t.Errorf("after Add: %v %v", s, err)
	}
	for _, bad := range []string{"files", "files=", "files=lax", "nothing=x", "files=changed,x=y"} {
		if err := s.Add(bad); err == nil {
			t.Errorf("Add(%q) worked", bad)
		}
		if s.Get("files") != "strict" {
			t.Errorf("Add(%q) changed something", bad)
		}
	}
	if err := s.Add(" files=changed\n"); err != nil || s.Get("files") != "changed" {
		t.Errorf("with white space: %v %v", s, err)
	}
	if got := (Set{"files": "strict"}).Over(Set{"files": "changed"}).String(); got != "files=strict" {
		t.Errorf("Over: %q", got)
	}
	if _, err := Parse([]string{"files=lax"}); err == nil || !strings.Contains(err.Error(), "changed, any, strict") {
		t.Errorf("Parse: %v", err)
	}
	if got := (Set{"files": "changed"}).Words(); len(got) != 0 {
		t.Errorf("a default is kept: %v", got)
	}
	if back, err := Parse(Set{"files": "strict"}.Words()); err != nil || back.Get("files") != "strict" {
		t.Errorf("through an image: %v %v", back, err)
	}
}

// TestTable holds the table to what the help prints of it.
func TestTable(t *testing.T) {
	last := ""
	for _, k := range All() {
		if k.Name <= last {
			t.Errorf("%s stands after %s", k.Name, last)
		}
		last = k.Name
		if k.About == "" || len(k.Values) < 2 || !k.Dump && !k.Restore {
			t.Errorf("%s says too little: %+v", k.Name, k)
		}
		for _, v := range k.Values {
			if v.Name == "" || v.Does == "" || strings.ContainsAny(v.Name, "=, \n") {
				t.Errorf("%s: bad value %+v", k.Name, v)
			}
		}
	}
}
