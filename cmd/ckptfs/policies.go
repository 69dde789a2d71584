package main

import (
	"fmt"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/spf13/pflag"
)

// policyFlag adds --policy, which may be given more than once.
func policyFlag(flags *pflag.FlagSet, set *policy.Set) {
	*set = policy.Set{}
	flags.Var((*policyValue)(set), "policy", "what to do where something cannot simply be kept, as `KEY=VALUE`; see ckptfs help policies")
}

// policyValue is a policy.Set as a flag.
type policyValue policy.Set

func (v *policyValue) Set(s string) error { return policy.Set(*v).Add(s) }
func (v *policyValue) Type() string       { return "KEY=VALUE" }
func (v *policyValue) String() string     { return policy.Set(*v).String() }

// policiesHelp is `ckptfs help policies`.
func policiesHelp() string {
	var b strings.Builder
	b.WriteString(`Policies say what a checkpoint or a restore does where something cannot simply be kept.

  ckptfs dump --policy KEY=VALUE …       for this checkpoint; what was chosen stands in the image
  ckptfs restore --policy KEY=VALUE …    instead of what the image says
  ckptfs explain --policy KEY=VALUE …    what would be refused or lost then
  ckptfs mount --policy KEY=VALUE …      for all that the mount does
  echo KEY=VALUE > ckpt/PID/policy       for checkpoints of that process through the mount;
                                         default forgets all that was written
`)
	for _, k := range policy.All() {
		fmt.Fprintf(&b, "\n%s: %s (%s)\n", k.Name, k.About, policySides(&k))
		for i, v := range k.Values {
			name := v.Name
			if i == 0 {
				name += " (default)"
			}
			fmt.Fprintf(&b, "  %-18s %s\n", name, v.Does)
		}
	}
	return b.String()
}

// policySides tells who heeds a policy.
func policySides(k *policy.Key) string {
	switch {
	case k.Dump && k.Restore:
		return "checkpoint and restore"
	case k.Dump:
		return "checkpoint"
	}
	return "restore"
}
