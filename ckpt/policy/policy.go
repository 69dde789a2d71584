// Package policy knows the policies: what a checkpoint or a restore does where a file or a piece of
// state cannot simply be kept. Each has a default that refuses or keeps; another value is chosen with
// --policy KEY=VALUE, and what was chosen at the checkpoint stands in the image.
package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Key is one policy.
type Key struct {
	Name   string
	About  string  // a clause: what it decides
	Values []Value // the first is the default
	Dump   bool    // a checkpoint heeds it
	// Restore: a restore heeds it, which takes the value of the image unless it is told another one.
	Restore bool
}

// Value is one value of a policy.
type Value struct {
	Name string
	Does string // a clause
}

// Default is the value that counts if none was chosen.
func (k *Key) Default() string { return k.Values[0].Name }

// has reports whether a value is one of the policy.
func (k *Key) has(value string) bool {
	return slices.ContainsFunc(k.Values, func(v Value) bool { return v.Name == value })
}

// values lists the names of the values.
func (k *Key) values() string {
	names := make([]string, len(k.Values))
	for i, v := range k.Values {
		names[i] = v.Name
	}
	return strings.Join(names, ", ")
}

// All lists every policy.
func All() []Key { return slices.Clone(all) }

// find returns the policy of that name, or nil.
func find(name string) *Key {
	i := slices.IndexFunc(all, func(k Key) bool { return k.Name == name })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// Set is the values that were chosen, by the names of their policies. The zero value is a Set
// without any, and good for everything but Add.
type Set map[string]string

// Get is the value of a policy: the chosen one, or its default. The name has to be one of All.
func (s Set) Get(name string) string {
	if v, ok := s[name]; ok {
		return v
	}
	return find(name).Default()
}

// Add chooses values, written KEY=VALUE; several are parted by commas or white space. Nothing is
// changed if one is wrong.
func (s Set) Add(text string) error {
	add := Set{}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return fmt.Errorf("policy %q is not of the form KEY=VALUE", word)
		}
		if err := check(name, value); err != nil {
			return err
		}
		add[name] = value
	}
	maps.Copy(s, add)
	return nil
}

// check says what is wrong with a name or its value.
func check(name, value string) error {
	k := find(name)
	if k == nil {
		return fmt.Errorf("there is no policy %q; there are %s", name, names())
	}
	if !k.has(value) {
		return fmt.Errorf("policy %s cannot be %q, but %s", name, value, k.values())
	}
	return nil
}

// Parse reads what Words has written into an image.
func Parse(words []string) (Set, error) {
	s := Set{}
	for _, w := range words {
		if err := s.Add(w); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Over returns the values of s, and those of base where s has none.
func (s Set) Over(base Set) Set {
	all := Set{}
	maps.Copy(all, base)
	maps.Copy(all, s)
	return all
}

// Words are the values other than the defaults as KEY=VALUE, sorted: what belongs into an image.
func (s Set) Words() []string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if k := find(name); k != nil && s[name] != k.Default() {
			words = append(words, name+"="+s[name])
		}
	}
	return words
}

// String is all values as Add takes them, sorted.
func (s Set) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		words = append(words, name+"="+s[name])
	}
	return strings.Join(words, " ")
}

// names lists the names of all policies.
func names() string {
	var l []string
	for i := range all {
		l = append(l, all[i].Name)
	}
	return strings.Join(l, ", ")
}
