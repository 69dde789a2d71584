package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/store"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// keepFlags say which checkpoints stay in a store.
type keepFlags struct {
	last           int
	within, expire periodFlag
	size           limitFlag
}

// keepDefaults bound a mount's store whatever is done with it: each process keeps its newest
// ten, and where each checkpoint is of another process, all of them go after a month.
func keepDefaults() keepFlags {
	return keepFlags{last: 10, within: periodFlag(day), expire: periodFlag(30 * day)}
}

// add adds the flags; the values that f has are the defaults.
func (f *keepFlags) add(flags *pflag.FlagSet, sizeDefault string) {
	flags.IntVar(&f.last, "keep-last", f.last, "keep the newest `N` checkpoints of every process")
	flags.Var(&f.expire, "expire", "but not of one that had no new checkpoint for `TIME`")
	flags.Var(&f.within, "keep-within", "keep what is younger than `TIME`")
	flags.Var(&f.size, "max-size", "then remove the oldest until the rest needs at most `SIZE`; a percentage is one of what is\nfree and what the store takes"+sizeDefault)
}

// keepText explains the flags.
const keepText = `A checkpoint stays if --keep-last or --keep-within keeps it; 0 switches a rule off, and with
both off none goes for its age. --max-size comes last and spares only the newest of all. What
was renamed in images/ (mv) always stays, until you remove it. TIME is 90m, 24h, 30d or 2w, SIZE is
500MB, 20GiB or 10%. In a bucket every machine removes only its own checkpoints.`

// any reports whether a rule was given.
func (f *keepFlags) any() bool { return f.last > 0 || f.within > 0 || f.size.set }

// check refuses what makes no sense.
func (f *keepFlags) check() error {
	if f.last < 0 {
		return usagef("--keep-last %d: want a number of checkpoints, or 0 for no such rule", f.last)
	}
	return nil
}

// policy makes the rules for a store that is open.
func (f *keepFlags) policy(at *storeFlags, st storeAPI) (p store.Policy, err error) {
	p = store.Policy{KeepLast: f.last, KeepWithin: time.Duration(f.within), Expire: time.Duration(f.expire),
		AllHosts: !store.IsBucket(at.place)} // a folder has one user at a time, and a machine may get another name
	if f.size.percent == 0 {
		p.MaxSize = int64(f.size.bytes)
		return p, nil
	}
	if store.IsBucket(at.place) {
		return p, usagef("--max-size %s: nobody knows how much room a bucket has; give a size", f.size.String())
	}
	stats, err := st.Stats()
	if err != nil {
		return p, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at.place, &fs); err != nil {
		return p, fmt.Errorf("room in %s: %w", at.place, err)
	}
	room := int64(fs.Bavail)*fs.Bsize + stats.Stored
	p.MaxSize = max(1, room/100*int64(f.size.percent))
	return p, nil
}

// policyText says the rules in a line.
func policyText(p *store.Policy) string {
	var say []string
	if p.KeepLast > 0 {
		s := fmt.Sprintf("the newest %d of every process", p.KeepLast)
		if e := periodFlag(p.Expire); e > 0 {
			s += fmt.Sprintf(" that had one within %s", e.String())
		}
		say = append(say, s)
	}
	if w := periodFlag(p.KeepWithin); w > 0 {
		say = append(say, "what is younger than "+w.String())
	}
	if len(say) == 0 {
		say = append(say, "everything")
	}
	if p.MaxSize > 0 {
		say = append(say, "at most "+size(p.MaxSize))
	}
	return strings.Join(say, ", ")
}
