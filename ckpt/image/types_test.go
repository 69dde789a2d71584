package image

import (
	"reflect"
	"strings"
	"testing"
)

// Every field that is written has a number of its own and a name: CBOR would drop the field of
// a number that is there twice, silently.
func TestFieldNumbers(t *testing.T) {
	seen := make(map[reflect.Type]bool)
	var visit func(t reflect.Type)
	visit = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Array, reflect.Pointer:
			visit(typ.Elem())
		}
		if typ.Kind() != reflect.Struct || seen[typ] {
			return
		}
		seen[typ] = true
		numbers := make(map[string]string)
		for i := range typ.NumField() {
			f := typ.Field(i)
			number, options, _ := strings.Cut(f.Tag.Get("cbor"), ",")
			if number == "" || !strings.HasPrefix(options, "keyasint") || f.Tag.Get("json") == "" {
				t.Errorf("%v.%s has no number or no name", typ, f.Name)
			}
			if other, twice := numbers[number]; twice {
				t.Errorf("%v.%s has the number of %s", typ, f.Name, other)
			}
			numbers[number] = f.Name
			visit(f.Type)
		}
	}
	visit(reflect.TypeFor[Manifest]())
	if len(seen) < 25 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}
