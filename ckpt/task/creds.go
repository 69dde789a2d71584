package task

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"golang.org/x/sys/unix"
)

// Securebits of capabilities(7).
const (
	secbitNoSetuidFixup = 1 << 2
	secbitKeepCaps      = 1 << 4
)

// capNames are the capabilities of linux/capability.h, by number.
var capNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capSet names the capabilities of a set.
func capSet(set uint64) string {
	var names []string
	for c := range 64 {
		switch {
		case set&(1<<c) == 0:
		case c < len(capNames):
			names = append(names, capNames[c])
		default:
			names = append(names, fmt.Sprintf("capability %d", c))
		}
	}
	return strings.Join(names, ", ")
}

// credsOf takes the credentials from a thread's status; securebits are not there.
func credsOf(st *procfs.Status) image.Creds {
	return image.Creds{
		UID: st.Uid, GID: st.Gid, Groups: st.Groups,
		Inh: st.CapInh, Prm: st.CapPrm, Eff: st.CapEff, Bnd: st.CapBnd, Amb: st.CapAmb,
		NoNewPrivs: st.NoNewPrivs,
	}
}

// readSecurebits queues the one part of the credentials that /proc does not show.
func readSecurebits(q *queue, c *image.Creds) {
	r := q.b.Call(unix.SYS_PRCTL, unix.PR_GET_SECUREBITS).Label("read the securebits")
	q.then(func() error {
		c.Securebits = uint32(r.Val())
		return nil
	})
}

// ownCaps are the capabilities of the calling thread, which the restored tasks start with.
type ownCaps struct {
	prm, bnd uint64
	nnp      bool
}

// readOwnCaps reads them, once: they are the same for all our threads and for as long as we run, and it takes a call
// for each that there is.
var readOwnCaps = sync.OnceValues(func() (ownCaps, error) {
	var o ownCaps
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return o, fmt.Errorf("capget: %w", err)
	}
	o.prm = uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	for c := range 64 {
		r, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			break // EINVAL: one past the last capability of this kernel
		}
		o.bnd |= uint64(r) << c
	}
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	o.nnp = nnp != 0
	return o, err
})

// checkCreds says what of the credentials a process with own cannot give.
func checkCreds(tid int32, c *image.Creds, own ownCaps) error {
	if missing := c.Prm &^ own.prm; missing != 0 {
		return fmt.Errorf("thread %d had the capabilities %s, which this process lacks: restore with them", tid, capSet(missing))
	}
	if missing := c.Bnd &^ own.bnd; missing != 0 {
		return fmt.Errorf("thread %d had %s in its capability bounding set, which this process lacks: restore from a process that has not dropped them", tid, capSet(missing))
	}
	if own.nnp && !c.NoNewPrivs {
		return fmt.Errorf("thread %d did not have no_new_privs, which is set here and cannot be unset: restore from a process without it", tid)
	}
	if needed := needToWrite &^ own.prm; needed != 0 {
		return fmt.Errorf("restoring the credentials of thread %d needs %s: run the restore as root", tid, capSet(needed))
	}
	return nil
}

// needToWrite is what WriteCreds itself uses.
const needToWrite = 1<<unix.CAP_SETPCAP | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID

// WriteCreds queues the change from our credentials to the thread's. The order matters:
//
//  1. securebits that keep all capabilities through the uid changes;
//  2. the inheritable set, since once the bounding set is cut it cannot grow;
//  3. groups, gids, uids: setgroups and setresgid need capabilities, not uid 0;
//  4. ambient capabilities before the final securebits, which may forbid raising them, and
//     the bounding set and these securebits while CAP_SETPCAP is still effective;
//  5. the final capabilities, then no_new_privs.
//
// Filesystem ids go through another value on the way: each change of the effective or filesystem id
// sets the dumpable flag to fs.suid_dumpable, so that WriteLast finds a known value. The limit
// RLIMIT_NPROC does not stop setresuid, but the next clone: threads exist before.
func WriteCreds(b *ptrace.Batch, th *image.Thread) {
	c := &th.Creds
	own, err := readOwnCaps()
	if err != nil {
		// Cannot happen to a process that reads its own; CheckRestore would have said so. What is
		// then asked for in vain fails below with EPERM.
		own = ownCaps{prm: c.Prm, bnd: c.Bnd}
	}
	prctl := func(what string, args ...uint64) {
		b.Call(unix.SYS_PRCTL, args...).Label(what)
	}
	prctl("set the securebits for the change of credentials", unix.PR_SET_SECUREBITS, secbitKeepCaps|secbitNoSetuidFixup)
	prctl("clear the ambient capabilities", unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	capset(b, "set the inheritable capabilities", own.prm, own.prm, c.Inh)
	writeIDs(b, c)
	forCaps(c.Amb, func(n uint64) {
		prctl("raise ambient "+capSet(1<<n), unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n)
	})
	forCaps(own.bnd&^c.Bnd, func(n uint64) { prctl("drop "+capSet(1<<n), unix.PR_CAPBSET_DROP, n) })
	prctl("set the securebits", unix.PR_SET_SECUREBITS, uint64(c.Securebits))
	capset(b, "set the capabilities", c.Prm, c.Eff, c.Inh)
	if c.NoNewPrivs {
		prctl("set no_new_privs", unix.PR_SET_NO_NEW_PRIVS, 1)
	}
}

// writeIDs queues groups, gids and uids.
func writeIDs(b *ptrace.Batch, c *image.Creds) {
	groups := make([]byte, 4*len(c.Groups))
	for i, g := range c.Groups {
		le.PutUint32(groups[4*i:], g)
	}
	var addr uint64
	if len(groups) > 0 {
		addr = b.Put(groups).Addr()
	}
	id := func(v uint32) uint64 { return uint64(v) }
	b.Call(unix.SYS_SETGROUPS, uint64(len(c.Groups)), addr).Label("set the supplementary groups")
	b.Call(unix.SYS_SETRESGID, id(c.GID[0]), id(c.GID[1]), id(c.GID[2])).Label("set the gids")
	b.Call(unix.SYS_SETRESUID, id(c.UID[0]), id(c.UID[1]), id(c.UID[2])).Label("set the uids")
	// setfsuid and setfsgid return the old id, never an error. Of 0 and 1 one is always a change.
	for _, v := range [...]uint32{0, 1, c.GID[3]} {
		b.Call(unix.SYS_SETFSGID, id(v)).Label("set the filesystem gid")
	}
	for _, v := range [...]uint32{0, 1, c.UID[3]} {
		b.Call(unix.SYS_SETFSUID, id(v)).Label("set the filesystem uid")
	}
}

// capset queues capset(2) of the thread itself.
func capset(b *ptrace.Batch, what string, prm, eff, inh uint64) {
	p := make([]byte, 8+24)
	le.PutUint32(p, unix.LINUX_CAPABILITY_VERSION_3)
	for half := range 2 {
		d, shift := p[8+12*half:], 32*half
		le.PutUint32(d, uint32(eff>>shift))
		le.PutUint32(d[4:], uint32(prm>>shift))
		le.PutUint32(d[8:], uint32(inh>>shift))
	}
	a := b.Put(p).Addr()
	b.Call(unix.SYS_CAPSET, a, a+8).Label(what)
}

// forCaps calls f for each capability of a set.
func forCaps(set uint64, f func(n uint64)) {
	for n := range uint64(64) {
		if set&(1<<n) != 0 {
			f(n)
		}
	}
}

// ErrCreds is in the chain of the error of VerifyCreds.
var ErrCreds = errors.New("credentials differ")

// VerifyCreds compares a restored thread's credentials, as /proc shows them, with those it
// should have. setfsuid(2) reports no errors, so without this a failure would pass unseen.
func VerifyCreds(tid int, want *image.Creds) error {
	st, err := readStatus(tid, 0)
	if err != nil {
		return fmt.Errorf("thread %d: %w", tid, err)
	}
	got := credsOf(&st)
	got.Securebits = want.Securebits // only the thread itself can ask; setting it did report errors
	if equalCreds(&got, want) {
		return nil
	}
	return fmt.Errorf("thread %d: %w: it has %+v, it should have %+v", tid, ErrCreds, got, *want)
}

func equalCreds(a, b *image.Creds) bool {
	if len(a.Groups) != len(b.Groups) {
		return false
	}
	for i := range a.Groups {
		if a.Groups[i] != b.Groups[i] {
			return false
		}
	}
	return a.UID == b.UID && a.GID == b.GID && a.Inh == b.Inh && a.Prm == b.Prm && a.Eff == b.Eff &&
		a.Bnd == b.Bnd && a.Amb == b.Amb && a.Securebits == b.Securebits && a.NoNewPrivs == b.NoNewPrivs
}
