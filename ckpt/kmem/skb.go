package kmem

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// The bytes that wait in a socket lie in struct sk_buff: some behind its head, and the rest in pages of which it has
// the struct page. Where the bytes of a page are tells a sum that is the same for all pages: both the
// memory and the struct pages stand in order (CONFIG_SPARSEMEM_VMEMMAP), from addresses that the kernel
// draws anew at each start, in steps of 1 GiB. So it is found by trying, with bytes that we have sent to
// ourselves.

// maxQueue bounds what is read of one socket.
const maxQueue = 64 << 20

// pageStep is the alignment of the addresses at which memory and struct pages begin (PUD_SIZE, arch/x86/mm/kaslr.c).
const pageStep = 1 << 30

// skbFrag is a piece of a page.
type skbFrag struct {
	page        uint64
	len, offset uint32
}

// at is the address of its bytes.
func (f skbFrag) at(pages pageSum) uint64 {
	return f.page*pages.factor + pages.sum + uint64(f.offset)
}

// pageSum leads from a struct page to the page: address * factor + sum.
type pageSum struct{ factor, sum uint64 }

// pages finds it, once.
func (m *Memory) pages() (pageSum, error) {
	m.pageSum.Do(func() { m.pageSumIs, m.pageSumErr = m.findPages() })
	return m.pageSumIs, m.pageSumErr
}

// findPages sends random bytes to ourselves, more than the kernel puts behind the head of a message.
func (m *Memory) findPages() (p pageSum, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return p, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[1])
	defer unix.Close(pair[0]) // made for this
	sent := make([]byte, 64<<10)
	_, _ = rand.Read(sent) // never fails
	n, err := unix.SendmsgN(pair[0], sent, nil, nil, unix.MSG_DONTWAIT)
	if err != nil {
		return p, fmt.Errorf("send to ourselves: %w", err)
	}
	sock, err := m.sock(pair[1])
	if err != nil {
		return p, err
	}
	w := walk{m: m}
	skbs := w.skbs(sock + w.off("sock.sk_receive_queue"))
	size, err := m.types.bytes("page")
	if w.err == nil {
		w.err = err
	}
	if w.err != nil {
		return p, w.err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return p, fmt.Errorf("sysinfo: %w", err)
	}
	p.factor = 4096 / size
	// The memory has holes, for devices and to be extended.
	around := min(4*int64(info.Totalram*uint64(info.Unit)>>30)+64, 1<<14)
	at := 0
	for _, skb := range skbs {
		head, frags := w.skb(skb)
		at += int(head.len)
		for _, f := range frags {
			if w.err != nil || at+int(f.len) > n || f.len < 64 {
				return p, fmt.Errorf("what was sent to ourselves is not found in the kernel: %w", w.err)
			}
			want := sent[at : at+64]
			if p.sum == 0 {
				if err := m.tryPages(&p, f, sock, around, want); err != nil {
					return p, err
				}
			}
			got := make([]byte, len(want))
			if err := m.Read(f.at(p), got); err != nil || !bytes.Equal(got, want) {
				return p, fmt.Errorf("the pages of this kernel do not stand in order (%v)", err)
			}
			at += int(f.len)
		}
	}
	if p.sum == 0 || at != n {
		return p, fmt.Errorf("of %d bytes that were sent to ourselves %d are found in the kernel", n, at)
	}
	return p, nil
}

// tryPages looks for the bytes of a page, near an address that lies in the same memory.
func (m *Memory) tryPages(p *pageSum, f skbFrag, near uint64, around int64, want []byte) error {
	var places []Place
	low := f.page * p.factor % pageStep
	for i := -around; i <= around; i++ {
		page := near/pageStep*pageStep + uint64(i)*pageStep + low
		places = append(places, Place{Addr: page + uint64(f.offset), Bytes: make([]byte, len(want))})
	}
	if err := m.ReadEach(places); err != nil {
		return err
	}
	for i := range places {
		if places[i].Err == nil && bytes.Equal(places[i].Bytes, want) {
			p.sum = places[i].Addr - uint64(f.offset) - f.page*p.factor
			return nil
		}
	}
	return fmt.Errorf("the kernel's memory has %d GiB and more, and what was sent to ourselves is not where it should be", around/4)
}

// sock is the address of the struct sock behind a descriptor of ours.
func (m *Memory) sock(fd int) (uint64, error) {
	file, err := m.File(fd)
	if err != nil {
		return 0, err
	}
	w := walk{m: m}
	sock := w.get(w.get(file, "file.private_data"), "socket.sk")
	if w.err == nil && sock == 0 {
		return 0, fmt.Errorf("descriptor %d of ours is no socket", fd)
	}
	return sock, w.err
}

// skbs are the buffers of a struct sk_buff_head.
func (w *walk) skbs(head uint64) (all []uint64) {
	next := w.off("sk_buff.next")
	for at := w.get(head, "sk_buff_head.next"); w.err == nil && at != head; at = w.word(at + next) {
		if len(all) == listLimit {
			w.err = fmt.Errorf("a list in the kernel has no end")
		}
		all = append(all, at)
	}
	return all
}

// skbHead is what stands behind the head of a buffer.
type skbHead struct {
	at  uint64
	len uint32
}

// skb tells where the bytes of a buffer are.
func (w *walk) skb(skb uint64) (head skbHead, frags []skbFrag) {
	all, paged := uint32(w.get(skb, "sk_buff.len")), uint32(w.get(skb, "sk_buff.data_len"))
	head = skbHead{at: w.get(skb, "sk_buff.data"), len: all - paged}
	if w.err == nil && (paged > all || all > maxQueue) {
		w.err = fmt.Errorf("a buffer in the kernel has %d bytes, and %d of them in pages", all, paged)
	}
	if w.err != nil || paged == 0 {
		return head, nil
	}
	shared := w.get(skb, "sk_buff.head") + w.get(skb, "sk_buff.end")
	n := w.get(shared, "skb_shared_info.nr_frags")
	if more := w.get(shared, "skb_shared_info.frag_list"); w.err == nil && more != 0 {
		w.err = fmt.Errorf("a buffer in the kernel is made of others")
	}
	at := shared + w.off("skb_shared_info.frags")
	for range n {
		var b [16]byte // skb_frag_t: netmem or bv_page, len, offset
		if w.err == nil {
			w.err = w.m.Read(at, b[:])
		}
		le := binary.LittleEndian
		f := skbFrag{le.Uint64(b[:]), le.Uint32(b[8:]), le.Uint32(b[12:])}
		if w.err == nil && (f.page&7 != 0 || f.len > paged) {
			w.err = fmt.Errorf("a buffer in the kernel lies elsewhere than in its memory")
		}
		paged -= f.len
		frags, at = append(frags, f), at+uint64(len(b))
	}
	if w.err == nil && paged != 0 {
		w.err = fmt.Errorf("a buffer in the kernel ends %d bytes early", paged)
	}
	return head, frags
}

// bytes appends what a buffer holds, but for the first skip bytes.
func (w *walk) bytes(to []byte, skb uint64, skip uint32) []byte {
	head, frags := w.skb(skb)
	take := func(at uint64, n uint32) {
		drop := min(skip, n)
		skip -= drop
		if w.err == nil && len(to)+int(n-drop) > maxQueue {
			w.err = fmt.Errorf("more than %d MiB wait in a socket", maxQueue>>20)
		}
		if w.err != nil {
			return
		}
		from := len(to)
		to = append(to, make([]byte, n-drop)...)
		w.err = w.m.Read(at+uint64(drop), to[from:])
	}
	take(head.at, head.len)
	if len(frags) == 0 || w.err != nil {
		return to
	}
	pages, err := w.m.pages()
	if err != nil {
		w.err = err
		return to
	}
	for _, f := range frags {
		take(f.at(pages), f.len)
	}
	return to
}
