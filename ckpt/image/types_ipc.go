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

// IPCPerm is what semaphore sets and message queues of System V have in common.
type IPCPerm struct {
	ID   int32  `cbor:"1,keyasint" json:"id"`
	Key  int32  `cbor:"2,keyasint,omitempty" json:"key"`  // IPC_PRIVATE: 0
	Mode uint32 `cbor:"3,keyasint,omitempty" json:"mode"` // permissions
	UID  uint32 `cbor:"4,keyasint,omitempty" json:"uid"`  // owner
	GID  uint32 `cbor:"5,keyasint,omitempty" json:"gid"`
	CUID uint32 `cbor:"6,keyasint,omitempty" json:"cuid"` // creator
	CGID uint32 `cbor:"7,keyasint,omitempty" json:"cgid"`
}

// SemSet is a semaphore set (semget(2)).
type SemSet struct {
	Perm IPCPerm     `cbor:"1,keyasint" json:"perm"`
	Sems []Semaphore `cbor:"2,keyasint" json:"sems"`
	Used bool        `cbor:"3,keyasint,omitempty" json:"used"` // semop(2) has been called: sem_otime is not 0
	Undo []SemUndo   `cbor:"4,keyasint,omitempty" json:"undo,omitempty"`
}

// SemUndo is what the kernel adds to a semaphore when a process ends (SEM_UNDO).
type SemUndo struct {
	PID int32  `cbor:"1,keyasint" json:"pid"`
	Num uint32 `cbor:"2,keyasint,omitempty" json:"num"` // of the semaphore in its set
	Adj int32  `cbor:"3,keyasint" json:"adj"`
}

// Semaphore is one of a set.
type Semaphore struct {
	Value uint32 `cbor:"1,keyasint,omitempty" json:"value"`
	PID   int32  `cbor:"2,keyasint,omitempty" json:"pid"` // who changed it last, perhaps gone; 0: nobody
}

// MsgQueue is a message queue (msgget(2)).
type MsgQueue struct {
	Perm   IPCPerm `cbor:"1,keyasint" json:"perm"`
	QBytes uint64  `cbor:"2,keyasint" json:"qbytes"`          // how much it may hold
	Count  uint32  `cbor:"3,keyasint,omitempty" json:"count"` // messages, which stand in Blob (package sysv)
	Blob   ObjRef  `cbor:"4,keyasint,omitempty" json:"blob"`  // 0: none
	LSPID  int32   `cbor:"5,keyasint,omitempty" json:"lspid"` // who sent last, perhaps gone; 0: nobody
	LRPID  int32   `cbor:"6,keyasint,omitempty" json:"lrpid"` // who received last
}

// MemPolicy is a NUMA policy (mbind(2)).
type MemPolicy struct {
	Mode  uint32 `cbor:"1,keyasint" json:"mode"`            // MPOL_* and MPOL_F_*
	Nodes []byte `cbor:"2,keyasint,omitempty" json:"nodes"` // bits, little endian
}
