package image

// SysVShm is what shared memory of System V (shmget(2)) has beside its content.
type SysVShm struct {
	ID     int32  `cbor:"1,keyasint" json:"id"`
	Key    int32  `cbor:"2,keyasint,omitempty" json:"key"`     // IPC_PRIVATE: 0
	Made   int32  `cbor:"3,keyasint,omitempty" json:"made"`    // the key it was made with, which maps shows: IPC_RMID takes Key away
	Size   uint64 `cbor:"4,keyasint" json:"size"`              // bytes, as shmget(2) was told
	Mode   uint32 `cbor:"5,keyasint,omitempty" json:"mode"`    // permissions
	UID    uint32 `cbor:"6,keyasint,omitempty" json:"uid"`     // owner
	GID    uint32 `cbor:"7,keyasint,omitempty" json:"gid"`     //
	CUID   uint32 `cbor:"8,keyasint,omitempty" json:"cuid"`    // creator
	CGID   uint32 `cbor:"9,keyasint,omitempty" json:"cgid"`    //
	CPID   int32  `cbor:"10,keyasint,omitempty" json:"cpid"`   // process that made it, perhaps gone; 0: of another pid namespace
	LPID   int32  `cbor:"11,keyasint,omitempty" json:"lpid"`   // process that attached or detached it last, perhaps gone
	Dest   bool   `cbor:"12,keyasint,omitempty" json:"dest"`   // IPC_RMID was given: it goes with the last mapping
	Locked bool   `cbor:"13,keyasint,omitempty" json:"locked"` // SHM_LOCK
}
