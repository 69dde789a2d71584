package netlock

import (
	"errors"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tries is how often a change is made again that met another ckptfs which made or removed the table.
const tries = 20

// set locks connections, or changes whose they are.
func (l *Lock) set(conns []Conn, owner string, d time.Duration) error {
	return change(func() error {
		have, err := list()
		if err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t, err := c.ListTableOfFamily(tableName, nftables.TableFamilyINet)
		if absent(err) != nil {
			return err
		}
		sets := setsOf(t)
		if t == nil {
			sets = makeTable(c)
		}
		for _, s := range sets {
			var old, fresh []nftables.SetElement
			for _, conn := range conns {
				if conn.Local.Addr().Is4() != (s.Name == "v4") {
					continue
				}
				for _, e := range have {
					if e.Conn == conn {
						old = append(old, nftables.SetElement{Key: conn.key()})
					}
				}
				fresh = append(fresh, nftables.SetElement{Key: conn.key(), Timeout: d, Comment: owner})
			}
			if len(old) > 0 { // a timeout that runs is not changed by adding again
				if err := c.SetDeleteElements(s, old); err != nil {
					return err
				}
			}
			if len(fresh) > 0 {
				if err := c.SetAddElements(s, fresh); err != nil {
					return err
				}
			}
		}
		return c.Flush() // all or nothing
	})
}

// remove lets the packets of connections through; the table goes with the last one.
func remove(conns []Conn) error {
	return change(func() error {
		have, err := list()
		if err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t, err := c.ListTableOfFamily(tableName, nftables.TableFamilyINet)
		if err != nil || t == nil {
			return absent(err)
		}
		mine := map[Conn]bool{}
		for _, conn := range conns {
			mine[conn] = true
		}
		left := 0
		for _, e := range have {
			if !mine[e.Conn] {
				left++
			}
		}
		if left == 0 {
			c.DelTable(t)
			return c.Flush()
		}
		for _, s := range setsOf(t) {
			var old []nftables.SetElement
			for _, e := range have {
				if mine[e.Conn] && e.Local.Addr().Is4() == (s.Name == "v4") {
					old = append(old, nftables.SetElement{Key: e.key()})
				}
			}
			if len(old) == 0 {
				continue
			}
			if err := c.SetDeleteElements(s, old); err != nil {
				return err
			}
		}
		return c.Flush()
	})
}

// change does something again that met a change by another ckptfs, or an element whose time was over.
func change(do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == tries || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINTR) {
			return err
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}

// setsOf describes the sets of the table.
func setsOf(t *nftables.Table) []*nftables.Set {
	if t == nil {
		t = &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	}
	of := func(name string, addr nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetService, addr, nftables.TypeInetService),
			Concatenation: true, HasTimeout: true}
	}
	return []*nftables.Set{of("v4", nftables.TypeIPAddr), of("v6", nftables.TypeIP6Addr)}
}

// makeTable adds what makes the table, with its sets, chains and rules, to a batch.
func makeTable(c *nftables.Conn) []*nftables.Set {
	t := c.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	sets := setsOf(t)
	for _, s := range sets {
		if err := c.AddSet(s, nil); err != nil {
			panic(err) // it has no elements that could be wrong
		}
	}
	before := nftables.ChainPriority(-400) // what tracks connections comes later
	in := c.AddChain(&nftables.Chain{Table: t, Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &before})
	out := c.AddChain(&nftables.Chain{Table: t, Name: "out", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: &before})
	for _, chain := range []*nftables.Chain{in, out} {
		for i, s := range sets {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: dropOf(s, i == 1, chain == in)})
		}
	}
	return sets
}

// dropOf drops the packets of the connections in a set. Of a packet that comes in, the local end is
// where it goes to.
func dropOf(s *nftables.Set, v6, in bool) []expr.Any {
	const reg = 8 // NFT_REG32_00 of linux/netfilter/nf_tables.h; each has 4 bytes
	family, addr, src, dst := byte(unix.NFPROTO_IPV4), uint32(4), uint32(12), uint32(16)
	if v6 {
		family, addr, src, dst = unix.NFPROTO_IPV6, 16, 8, 24
	}
	sport, dport := uint32(0), uint32(2)
	if in {
		src, dst, sport, dport = dst, src, dport, sport
	}
	load := func(to, base, offset, n uint32) expr.Any {
		return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: to, Base: expr.PayloadBase(base), Offset: offset, Len: n}
	}
	is := func(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
	}
	words := addr / 4
	var x []expr.Any
	x = append(x, is(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{family})...)
	x = append(x, is(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP})...)
	x = append(x, is(expr.MetaKeyMARK, expr.CmpOpNeq, binaryutil.NativeEndian.PutUint32(Mark))...)
	return append(x,
		load(reg, uint32(expr.PayloadBaseNetworkHeader), src, addr),
		load(reg+words, uint32(expr.PayloadBaseTransportHeader), sport, 2),
		load(reg+words+1, uint32(expr.PayloadBaseNetworkHeader), dst, addr),
		load(reg+2*words+1, uint32(expr.PayloadBaseTransportHeader), dport, 2),
		&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop})
}
