package kind

// What linux/io_uring.h calls these.
const (
	ringIOPoll       = 1 << 0
	ringSQPoll       = 1 << 1
	ringSQAff        = 1 << 2
	ringCQSize       = 1 << 3
	ringAttachWQ     = 1 << 5
	ringDisabled     = 1 << 6
	ringSQE128       = 1 << 10
	ringCQE32        = 1 << 11
	ringSingleIssuer = 1 << 12
	ringNoMmap       = 1 << 14
	ringFDOnly       = 1 << 15
	ringNoSQArray    = 1 << 16
	ringFlags        = 1<<19 - 1 // those up to IORING_SETUP_CQE_MIXED, which this version knows

	ringOffSQ   = 0
	ringOffCQ   = 0x8000000
	ringOffSQEs = 0x10000000

	ringOpNop      = 0
	ringOpMsg      = 40
	ringSkipCQE    = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS
	ringSQWakeup   = 1 << 1 // IORING_ENTER_SQ_WAKEUP
	ringNeedWakeup = 1 << 0 // IORING_SQ_NEED_WAKEUP

	ringRegBuffers      = 0
	ringRegFiles        = 2
	ringRegEventFD      = 4
	ringRegEventFDAsync = 7
	ringRegClock        = 29

	maxSQEntries = 1 << 15
	maxCQEntries = 1 << 16
)

// ringParams is struct io_uring_params.
type ringParams struct {
	SQEntries, CQEntries, Flags, CPU, Idle, Features, WQFD uint32
	_                                                      [3]uint32
	SQ                                                     sqOffsets
	CQ                                                     cqOffsets
}

type sqOffsets struct {
	Head, Tail, Mask, Entries, Flags, Dropped, Array, _ uint32
	_                                                   uint64
}

type cqOffsets struct {
	Head, Tail, Mask, Entries, Overflow, CQEs, Flags, _ uint32
	_                                                   uint64
}

const pageSize = 4096

func (r *uringRec) sqeSize() int {
	if r.Flags&ringSQE128 != 0 {
		return 128
	}
	return 64
}

func (r *uringRec) cqeSize() int {
	if r.Flags&ringCQE32 != 0 {
		return 32
	}
	return 16
}

// arrayLen is the length of the array of indices.
func (r *uringRec) arrayLen() int {
	if r.Flags&ringNoSQArray != 0 {
		return 0
	}
	return 4 * int(r.SQEntries)
}

// sizes are the lengths of what stands in the blob: entries of both rings, and the indices.
func (r *uringRec) sizes() (sqes, cqes, array int) {
	return r.sqeSize() * int(r.SQEntries), r.cqeSize() * int(r.CQEntries), r.arrayLen()
}

// mapLens are how much can be mapped at ringOffSQ and ringOffCQ, and at ringOffSQEs.
func (r *uringRec) mapLens() (rings, sqes uint64) {
	n, cqes, array := r.sizes()
	const head, line = 64, 64 // struct io_rings before its cqes; the array begins at a cache line
	rings = uint64(head+cqes+line-1)/line*line + uint64(array)
	return pages(rings), pages(uint64(n))
}

func pages(n uint64) uint64 { return (n + pageSize - 1) / pageSize * pageSize }
