package ahead

import "github.com/ckptfs/ckptfs/store/tree"

// start sees to it that enough goroutines fetch.
func (a *Reader) start() {
	want := int64(0)
	for i := range a.streams {
		s := &a.streams[i]
		if s.blind {
			want++
		}
		if p := s.first(); p != nil {
			want += (s.next-p.off)/s.batch() + 1
		}
	}
	for ; a.fetches < int(min(want, int64(a.parallel()))); a.fetches++ {
		a.running.Add(1)
		go a.run() // awaited by Close
	}
}

// work fetches until there is nothing to do.
func (a *Reader) work() {
	defer a.running.Done()
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.fetching()
	for !a.stopped.Load() {
		if s := a.blindStream(); s != nil {
			a.readLeaf(s)
			continue
		}
		if !a.claim(f) {
			break
		}
		a.mu.Unlock()
		a.fetch(f)
		a.mu.Lock()
	}
	a.spare = append(a.spare, f)
	a.fetches--
}

func (a *Reader) fetching() *fetching {
	if n := len(a.spare); n > 0 {
		f := a.spare[n-1]
		a.spare = a.spare[:n-1]
		return f
	}
	return new(fetching)
}

func (a *Reader) blindStream() *stream {
	for i := range a.streams {
		if s := &a.streams[i]; s.blind {
			return s
		}
	}
	return nil
}

// readLeaf reads the leaf that a stream comes to. It is called with mu held and gives it up
// meanwhile.
func (a *Reader) readLeaf(s *stream) {
	s.blind = false
	next := s.next
	if next >= a.list.Size {
		return // the reader went on to the end, or looked beyond it, before we came here
	}
	i, _ := tree.LeafAt(a.list.Ends, next)
	a.mu.Unlock()
	_, err := a.view.leaf(a.list.Spans[i])
	a.mu.Lock()
	if s.next != next {
		return // it is elsewhere by now
	}
	if err != nil {
		s.next = a.list.Ends[i] // the reader will be told when it gets there
	}
	a.plan(s)
	a.start()
}

// claim takes the batch of pieces that will be needed first; false if there is none.
func (a *Reader) claim(f *fetching) bool {
	f.pieces = f.pieces[:0]
	var first *stream
	for i := range a.streams {
		if s := &a.streams[i]; s.first() != nil && (first == nil || s.first().off-s.pos < first.first().off-first.pos) {
			first = s
		}
	}
	if first == nil {
		return false
	}
	for n := int64(0); first.todo < len(first.pieces) && n < first.batch(); first.todo++ {
		if p := first.pieces[first.todo]; p != nil && p.state == pieceWaits {
			p.state = pieceFetched
			f.pieces = append(f.pieces, p)
			n += int64(p.ref.Size)
		}
	}
	return true
}

// first returns the first piece that nobody fetches yet, or nil.
func (s *stream) first() *piece {
	for ; s.todo < len(s.pieces); s.todo++ {
		if p := s.pieces[s.todo]; p != nil && p.state == pieceWaits {
			return p
		}
	}
	return nil
}
