package kind

import (
	"encoding/binary"
	"fmt"
)

// readRegistered reads what is registered with the ring: files, buffers and an eventfd.
func (r *ringState) readRegistered(f *Found, s *Scene, p *pry) error {
	c := &r.rec
	c.EventFD = -1
	if ev := p.get(r.ctx, "io_ring_ctx.io_ev_fd"); ev != 0 {
		want := p.get(ev, "io_ev_fd.cq_ev_fd")
		c.Async = p.get(ev, "io_ev_fd.eventfd_async")&0xff != 0
		for _, g := range s.Files {
			if g.Info.EventFD == nil || c.EventFD >= 0 {
				continue
			}
			file, err := p.m.File(g.FD)
			if err != nil {
				return err
			}
			if p.get(file, "file.private_data") == want {
				c.EventFD = slotIn(g, c.PID)
			}
		}
		if c.EventFD < 0 {
			r.wrong = append(r.wrong, fmt.Sprintf("an eventfd is registered with it that pid %d has closed", c.PID))
		}
	}
	if err := r.readFiles(s, p); err != nil {
		return err
	}
	return r.readBuffers(f, p)
}

// nodes reads a table of struct io_rsrc_node: their addresses, 0 for a place that is empty.
func (r *ringState) nodes(p *pry, member string) ([]uint64, error) {
	n, at := uint32(p.get(r.ctx, member+".nr")), p.get(r.ctx, member+".nodes")
	if p.err != nil || n == 0 {
		return nil, p.err
	}
	if n > 1<<20 {
		return nil, fmt.Errorf("%s: there are %d", member, n)
	}
	b := make([]byte, 8*int(n))
	if err := p.m.Read(at, b); err != nil {
		return nil, err
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(b[8*i:])
		if out[i] != 0 && p.get(out[i], "io_rsrc_node.tag") != 0 {
			r.wrong = append(r.wrong, "what is registered with it has tags, which are not kept")
		}
	}
	return out, p.err
}

func (r *ringState) readFiles(s *Scene, p *pry) error {
	nodes, err := r.nodes(p, "io_ring_ctx.file_table.data")
	if err != nil || len(nodes) == 0 {
		return err
	}
	open := map[uint64]*Found{}
	for _, g := range s.Files {
		if file, err := p.m.File(g.FD); err == nil {
			open[file] = g
		}
	}
	for i, n := range nodes {
		num := int32(-1)
		if n != 0 {
			const flags = 7 // FFS_MASK
			g := open[p.get(n, "io_rsrc_node.file_ptr")&^flags]
			if g != nil {
				num = slotIn(g, r.rec.PID)
			}
			if num < 0 {
				r.wrong = append(r.wrong, fmt.Sprintf("a file is registered with it, as number %d, that pid %d has closed", i, r.rec.PID))
			}
		}
		r.rec.Files = append(r.rec.Files, num)
	}
	if a, b := p.get(r.ctx, "io_ring_ctx.file_alloc_start"), p.get(r.ctx, "io_ring_ctx.file_alloc_end"); p.err == nil && (a != 0 || b != uint64(len(nodes))) {
		r.wrong = append(r.wrong, "a range of registered files is set (IORING_REGISTER_FILE_ALLOC_RANGE), which is not kept")
	}
	return p.err
}

func (r *ringState) readBuffers(f *Found, p *pry) error {
	nodes, err := r.nodes(p, "io_ring_ctx.buf_table")
	if err != nil {
		return err
	}
	for _, n := range nodes {
		buf := []uint64{0, 0}
		if n != 0 {
			imu := p.get(n, "io_rsrc_node.buf")
			buf = []uint64{p.get(imu, "io_mapped_ubuf.ubuf"), p.get(imu, "io_mapped_ubuf.len")}
			if p.maybe(imu, "io_mapped_ubuf.is_kbuf")&0xff != 0 || p.get(imu, "io_mapped_ubuf.refs.refs.counter") != 1 {
				r.wrong = append(r.wrong, "buffers are registered with it that it shares with another ring or with the kernel")
			}
		}
		r.rec.Buffers = append(r.rec.Buffers, buf)
	}
	for _, at := range f.Slots {
		if len(nodes) > 0 && at.PID != r.rec.PID {
			r.wrong = append(r.wrong, fmt.Sprintf("buffers are registered with it, and pid %d has it open, too: whose memory they are cannot be told", at.PID))
			break
		}
	}
	return p.err
}
