// Package netlock keeps the packets of single TCP connections away from the kernel's TCP for a while, so
// that a connection can be taken out of one process and put into another without its peer hearing
// more of it than a pause. It is a table of netfilter (nftables):
//
//	table inet ckptfs
//	  set v4, v6    local address . port . peer address . port, each element with a timeout
//	  chain in      prerouting, priority -400: drops what comes for one of them
//	  chain out     output, priority -400: drops what is sent by one of them
//
// What carries Mark passes. The comment of an element says whose it is: "held", or the pid and start
// time of the ckptfs that works on it. What a ckptfs left that was killed is removed by Sweep, and by
// the kernel when its time is over. The table goes when its last element does.
package netlock

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Mark is the mark (SO_MARK) of packets that pass.
const Mark = 0x636b7074

// How long a lock lasts.
const (
	WorkTime = 2 * time.Minute  // while a ckptfs works on it
	HoldTime = 15 * time.Minute // from the end of the old process to the restore
)

const (
	tableName = "ckptfs"
	held      = "held"
)

// Conn is a connection of this machine. Addresses are not IPv4 mapped into IPv6.
type Conn struct{ Local, Peer netip.AddrPort }

// Lock keeps away the packets of some connections until Release. It belongs to one goroutine.
type Lock struct {
	conns  []Conn
	before []Conn // those that were held when it was taken
}

// Take locks connections. A connection that another live ckptfs works on is refused.
func Take(conns []Conn) (*Lock, error) {
	l := &Lock{conns: slices.Clone(conns)}
	have, err := list()
	if err != nil {
		return nil, err
	}
	for _, e := range have {
		switch {
		case !slices.Contains(conns, e.Conn):
		case e.owner == held:
			l.before = append(l.before, e.Conn)
		case alive(e.owner) && e.owner != me():
			return nil, fmt.Errorf("the TCP connection from %s to %s is being worked on by another ckptfs (%s); try again when it is done", e.Local, e.Peer, e.owner)
		}
	}
	if err := l.set(conns, me(), WorkTime); err != nil {
		return nil, fmt.Errorf("a rule of netfilter (nftables) that keeps away the packets of %d TCP connections: %w", len(conns), err)
	}
	return l, nil
}

// Hold has the packets kept away when we are gone, for HoldTime: the connections are in an image.
func (l *Lock) Hold() error {
	if l == nil {
		return nil
	}
	return l.set(l.conns, held, HoldTime)
}

// Release lets the packets through.
func (l *Lock) Release() error {
	if l == nil {
		return nil
	}
	return remove(l.conns)
}

// Back leaves the connections as they were before Take: those that were held stay so.
func (l *Lock) Back() error {
	if l == nil {
		return nil
	}
	err := remove(slices.DeleteFunc(slices.Clone(l.conns), func(c Conn) bool { return slices.Contains(l.before, c) }))
	if len(l.before) == 0 {
		return err
	}
	return errors.Join(err, l.set(l.before, held, HoldTime))
}

// Sweep removes what a ckptfs has left that was killed, and tells how many connections that were.
func Sweep() (int, error) {
	have, err := list()
	if err != nil {
		return 0, err
	}
	var dead []Conn
	for _, e := range have {
		if e.owner != held && !alive(e.owner) {
			dead = append(dead, e.Conn)
		}
	}
	if len(dead) == 0 {
		return 0, nil
	}
	return len(dead), remove(dead)
}

// Probe tells whether locks can be taken, by making the table for a moment.
func Probe() error {
	l, err := Take([]Conn{{netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("192.0.2.2:9")}}) // of RFC 5737
	if err != nil {
		return err
	}
	return l.Release()
}

// me names this process as the owner of a lock.
func me() string { return ownerOf(os.Getpid()) }

func ownerOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return fmt.Sprintf("pid %d", pid)
	}
	st, err := procfs.ParseStat(b)
	if err != nil {
		return fmt.Sprintf("pid %d", pid)
	}
	return fmt.Sprintf("pid %d of %d", pid, st.StartTime)
}

// alive tells whether the process that a comment names still runs.
func alive(owner string) bool {
	var pid int
	if n, err := fmt.Sscanf(owner, "pid %d", &pid); n != 1 || err != nil {
		return false
	}
	return ownerOf(pid) == owner && unix.Kill(pid, 0) != unix.ESRCH
}

// key is the key of an element.
func (c Conn) key() []byte {
	var b []byte
	for _, a := range [...]netip.AddrPort{c.Local, c.Peer} {
		b = append(b, a.Addr().AsSlice()...)
		b = append(b, byte(a.Port()>>8), byte(a.Port()), 0, 0)
	}
	return b
}

// connOf is the connection of a key.
func connOf(b []byte) (c Conn, ok bool) {
	half := len(b) / 2
	if half != 8 && half != 20 || len(b)%2 != 0 {
		return c, false
	}
	part := func(b []byte) netip.AddrPort {
		a, _ := netip.AddrFromSlice(b[:half-4])
		return netip.AddrPortFrom(a, uint16(b[half-4])<<8|uint16(b[half-3]))
	}
	return Conn{part(b[:half]), part(b[half:])}, true
}

// element is a connection that is locked.
type element struct {
	Conn
	owner string
}

// list reads the table. There is none: nothing is locked.
func list() ([]element, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("netfilter (nftables): %w", err)
	}
	t, err := c.ListTableOfFamily(tableName, nftables.TableFamilyINet)
	if err != nil || t == nil {
		return nil, absent(err)
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return nil, absent(err)
	}
	var all []element
	for _, s := range sets {
		es, err := c.GetSetElements(s)
		if err != nil {
			return nil, absent(err)
		}
		for _, e := range es {
			if conn, ok := connOf(e.Key); ok {
				all = append(all, element{conn, strings.TrimRight(e.Comment, "\x00")})
			}
		}
	}
	slices.SortFunc(all, func(a, b element) int { return bytes.Compare(a.key(), b.key()) })
	return all, nil
}

// absent is the error of looking for what need not be there.
func absent(err error) error {
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return fmt.Errorf("netfilter (nftables): %w", err)
}
