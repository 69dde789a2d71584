package task

import (
	"errors"
	"fmt"
	"os"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

// NUMA policies: of threads (set_mempolicy(2)) and of mappings (mbind(2)). The kernel tells them as they were given,
// but neither whose turn it is in an interleaved one nor a home node (set_mempolicy_home_node(2)), which are hints.

const (
	nodesBytes = 128 // the most nodes that a kernel knows, 1 << CONFIG_NODES_SHIFT, as bits
	maxNode    = nodesBytes*8 + 1

	mpolFAddr         = 2       // MPOL_F_ADDR of linux/mempolicy.h
	mpolRelativeNodes = 1 << 14 // MPOL_F_RELATIVE_NODES

	memoryNodes = "/sys/devices/system/node/has_memory"
)

// readMempolicy queues a look at the thread's NUMA policy.
func readMempolicy(q *queue, th *image.Thread) {
	buf := q.b.Alloc(8 + nodesBytes)
	r := q.b.Call(unix.SYS_GET_MEMPOLICY, buf.Addr(), buf.Addr()+8, maxNode, 0, 0).Label("read the memory policy").Ignore()
	q.then(func() error {
		th.MemPolicy = policyOf(r, buf)
		return nil
	})
}

// policyOf is the policy that a call has read, nil for the default.
func policyOf(r *ptrace.Ret, buf ptrace.Buf) *image.MemPolicy {
	if r.Err() != nil { // ENOSYS: no NUMA here
		return nil
	}
	return decodePolicy(buf.Bytes())
}

// decodePolicy takes a mode and, 8 bytes on, the nodes.
func decodePolicy(b []byte) *image.MemPolicy {
	mode := le.Uint32(b)
	if mode == 0 {
		return nil
	}
	return &image.MemPolicy{Mode: mode, Nodes: trim(append([]byte(nil), b[8:]...))}
}

// ReadPolicies reads the NUMA policies of a process's mappings, by an address in each; those that have the default are
// not in the result. batch begins a batch in the process.
func ReadPolicies(batch func() (*ptrace.Batch, error), addrs []uint64) (map[uint64]*image.MemPolicy, error) {
	var found []uint64
	err := eachPolicy(batch, addrs, 4, func(addr uint64, b []byte) {
		if le.Uint32(b) != 0 {
			found = append(found, addr)
		}
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	out := map[uint64]*image.MemPolicy{}
	return out, eachPolicy(batch, found, 8+nodesBytes, func(addr uint64, b []byte) { out[addr] = decodePolicy(b) })
}

// eachPolicy asks about each address, with room for the mode and perhaps the nodes.
func eachPolicy(batch func() (*ptrace.Batch, error), addrs []uint64, room int, f func(addr uint64, b []byte)) error {
	const callSize = 72 // in a batch
	for len(addrs) > 0 {
		b, err := batch()
		if err != nil {
			return err
		}
		now := addrs[:min(len(addrs), max(1, (b.Room()-1024)/(callSize+room)))]
		buf := b.Alloc(room * len(now))
		nodes, maxNodes := uint64(0), uint64(0)
		if room > 8 {
			nodes, maxNodes = 8, maxNode
		}
		var last *ptrace.Ret
		for i, addr := range now {
			at := buf.Addr() + uint64(i*room)
			if nodes != 0 {
				nodes = at + 8
			}
			last = b.Call(unix.SYS_GET_MEMPOLICY, at, nodes, maxNodes, addr, mpolFAddr).Ignore()
		}
		if err := b.Run(); err != nil {
			return err
		}
		if errors.Is(last.Err(), unix.ENOSYS) {
			return nil // no NUMA here
		}
		for i, addr := range now {
			f(addr, buf.Bytes()[i*room:(i+1)*room]) // zeros, which is the default, if the call failed
		}
		addrs = addrs[len(now):]
	}
	return nil
}

// writeMempolicy queues setting a thread's NUMA policy, which it has got from us otherwise.
func writeMempolicy(b *ptrace.Batch, th *image.Thread) {
	p := th.MemPolicy
	if p == nil {
		b.Call(unix.SYS_SET_MEMPOLICY, 0, 0, 0).Ignore() // ENOSYS: no NUMA here
		return
	}
	b.Call(unix.SYS_SET_MEMPOLICY, uint64(p.Mode), putNodes(b, p), maxNode).Label(fmt.Sprintf("set the memory policy %#x of the nodes %s", p.Mode, cpuList(p.Nodes)))
}

// WritePolicy queues setting the NUMA policy of a mapping, if it has one. Its pages come where that says.
func WritePolicy(b *ptrace.Batch, v *image.VMA) {
	p := v.MemPolicy
	if p == nil {
		return
	}
	b.Call(unix.SYS_MBIND, v.Start, v.End-v.Start, uint64(p.Mode), putNodes(b, p), maxNode, 0).
		Label(fmt.Sprintf("set the memory policy %#x of the nodes %s for %#x-%#x", p.Mode, cpuList(p.Nodes), v.Start, v.End))
}

func putNodes(b *ptrace.Batch, p *image.MemPolicy) uint64 {
	nodes := make([]byte, nodesBytes)
	copy(nodes, p.Nodes)
	return b.Put(nodes).Addr()
}

// checkPolicies says which nodes the policies name that this machine does not have: the kernel would leave them out
// without a word.
func checkPolicies(t *image.Task, mm *image.MM) error {
	var has []byte
	check := func(what string, p *image.MemPolicy) error {
		if p == nil {
			return nil
		}
		if has == nil {
			var err error
			if has, err = readNodes(); err != nil {
				return fmt.Errorf("%s has a memory policy (mode %#x): %w", what, p.Mode, err)
			}
		}
		lacks := subtract(p.Nodes, has)
		if len(lacks) == 0 || p.Mode&mpolRelativeNodes != 0 { // those are folded onto what there is
			return nil
		}
		return fmt.Errorf("%s has a memory policy (mode %#x) with the NUMA nodes %s, and this machine lets us have memory of %s: restore where they are, or start the program without numactl, set_mempolicy(2) and mbind(2)",
			what, p.Mode, cpuList(p.Nodes), cpuList(has))
	}
	for i := range t.Threads {
		if err := check(fmt.Sprintf("thread %d", t.Threads[i].TID), t.Threads[i].MemPolicy); err != nil {
			return err
		}
	}
	if mm == nil {
		return nil
	}
	for i := range mm.VMAs {
		if err := check(fmt.Sprintf("pid %d: the memory at %#x", t.PID, mm.VMAs[i].Start), mm.VMAs[i].MemPolicy); err != nil {
			return err
		}
	}
	return nil
}

// readNodes returns the NUMA nodes with memory that we may use.
func readNodes() ([]byte, error) {
	b, err := quickread.File(memoryNodes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("this kernel has no NUMA (CONFIG_NUMA)")
	}
	if err != nil {
		return nil, err
	}
	all, err := parseCPUList(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", memoryNodes, err)
	}
	st, err := readStatus(os.Getpid(), 0)
	if err != nil || st.MemsAllowed == "" {
		return all, err
	}
	allowed, err := parseCPUList(st.MemsAllowed)
	if err != nil {
		return nil, fmt.Errorf("status: Mems_allowed_list: %w", err)
	}
	for i := range all {
		if i >= len(allowed) {
			all[i] = 0
		} else {
			all[i] &= allowed[i]
		}
	}
	return trim(all), nil
}
