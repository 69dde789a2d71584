package image

// AIO is a context of io_setup(2) without requests in flight. Its VMA starts at the aio_context_t.
type AIO struct {
	MaxReqs uint32 `cbor:"1,keyasint" json:"max_reqs"` // the argument of io_setup(2)
	Head    uint32 `cbor:"2,keyasint,omitempty" json:"head"`
	Tail    uint32 `cbor:"3,keyasint,omitempty" json:"tail"`
	Events  []byte `cbor:"4,keyasint,omitempty" json:"events,omitempty"` // struct io_event, those from Head to Tail, which nobody has read
}

// The ring of an AIO context: struct aio_ring of fs/aio.c, and struct io_event of linux/aio_abi.h.
const (
	AIORingHead  = 32 // bytes before the events
	AIOEventSize = 32
)

// AIORoom is how many events fit into a ring of so many bytes, whole pages.
func AIORoom(bytes uint64) uint32 { return uint32((bytes - AIORingHead) / AIOEventSize) }

// Unread is how many events nobody has read, of a ring with room for so many.
func (a *AIO) Unread(room uint32) uint32 { return (a.Tail + room - a.Head) % room }

// validAIO checks what there is of an AIO context.
func (v *VMA) validAIO() error {
	const mostReqs, mostBytes = 1 << 24, 1 << 30
	a := v.AIO
	switch {
	case (v.Kind == VMAAIO) != (a != nil):
		return bad("aio", "does not fit to a VMA of kind %d", v.Kind)
	case a == nil:
		return nil
	case v.End-v.Start > mostBytes || a.MaxReqs == 0 || a.MaxReqs > mostReqs:
		return bad("aio", "a ring of %d bytes for %d requests", v.End-v.Start, a.MaxReqs)
	}
	room := AIORoom(v.End - v.Start)
	if a.Head >= room || a.Tail >= room || uint64(len(a.Events)) != uint64(a.Unread(room))*AIOEventSize {
		return bad("aio", "events from %d to %d of %d, %d bytes", a.Head, a.Tail, room, len(a.Events))
	}
	return nil
}
