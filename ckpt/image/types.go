package image

import "github.com/fxamacker/cbor/v2"

// The field numbers below are the wire format. A number is never reused and never
// changes its meaning; a field that goes away leaves its number behind as a comment.

// ObjRef names a shared object of the manifest by its place in that object's list,
// counted from 1. 0 means "none". Each shared object (mm, file table, fs, signal
// handlers, open file description, segment, blob) stands once in the manifest, and
// everything that shares it carries the same ObjRef.
type ObjRef uint32

// Manifest is everything about a process tree but the bytes of its memory.
type Manifest struct {
	Tool     string   `cbor:"1,keyasint" json:"tool"`                         // writer and its version, "ckptfs 0.1.0"
	Created  int64    `cbor:"2,keyasint" json:"created"`                      // moment of the freeze, Unix ns
	Host     Host     `cbor:"3,keyasint" json:"host"`                         // where it was taken
	Features []string `cbor:"4,keyasint,omitempty" json:"features,omitempty"` // what a reader must know beyond this version; an unknown name is refused

	Tasks    []Task    `cbor:"5,keyasint" json:"tasks"` // Tasks[0] is the root; every parent stands before its children
	MMs      []MM      `cbor:"6,keyasint" json:"mms"`
	FDTables []FDTable `cbor:"7,keyasint" json:"fd_tables"`
	FSs      []FS      `cbor:"8,keyasint" json:"fss"`
	Sighands []Sighand `cbor:"9,keyasint" json:"sighands"`
	Files    []File    `cbor:"10,keyasint" json:"files"`                        // open file descriptions
	Segments []Segment `cbor:"11,keyasint,omitempty" json:"segments,omitempty"` // shared memory
	Blobs    []Blob    `cbor:"12,keyasint,omitempty" json:"blobs,omitempty"`    // raw bytes that belong to files, such as the content of a pipe
	Lost     []Finding `cbor:"13,keyasint,omitempty" json:"lost,omitempty"`     // what a restore will not bring back, by which policy

	Policies []string `cbor:"14,keyasint,omitempty" json:"policies,omitempty"` // chosen at the checkpoint, other than the defaults: KEY=VALUE (package policy)

	SemSets   []SemSet   `cbor:"15,keyasint,omitempty" json:"sem_sets,omitempty"`   // of System V
	MsgQueues []MsgQueue `cbor:"16,keyasint,omitempty" json:"msg_queues,omitempty"` // of System V
}

// Host tells where and on what an image was taken.
type Host struct {
	Hostname  string `cbor:"1,keyasint" json:"hostname"`
	Kernel    string `cbor:"2,keyasint" json:"kernel"` // uname -r
	Arch      string `cbor:"3,keyasint" json:"arch"`   // GOARCH
	BootID    string `cbor:"4,keyasint" json:"boot_id"`
	CPU       string `cbor:"5,keyasint" json:"cpu"`               // model name
	XFeatures uint64 `cbor:"6,keyasint" json:"xfeatures"`         // XCR0 as the kernel reports it in the XSTATE regset
	XStateLen uint32 `cbor:"7,keyasint" json:"xstate_len"`        // bytes of the XSTATE regset
	VDSO      []byte `cbor:"8,keyasint" json:"vdso"`              // BLAKE3 of the vdso pages
	VDSOLen   uint32 `cbor:"9,keyasint" json:"vdso_len"`          // bytes
	Monotonic int64  `cbor:"10,keyasint" json:"monotonic"`        // CLOCK_MONOTONIC at the freeze, ns
	Boottime  int64  `cbor:"11,keyasint" json:"boottime"`         // CLOCK_BOOTTIME at the freeze, ns
	CPUFlags  string `cbor:"12,keyasint" json:"cpu_flags"`        // flags of /proc/cpuinfo
	Cgroup    string `cbor:"13,keyasint,omitempty" json:"cgroup"` // cgroup of the root task, v2 path or the first v1 one

	XComponents []XComponent `cbor:"14,keyasint,omitempty" json:"xcomponents,omitempty"` // the layout of the XSTATE regset on that CPU
}

// XComponent is the place of one feature in the XSTATE regset, which is not the same on all
// CPUs (Intel SDM volume 1, chapter 13). x87 and SSE stand in the first 512 bytes everywhere.
type XComponent struct {
	Bit  uint32 `cbor:"1,keyasint" json:"bit"` // in XCR0
	Off  uint32 `cbor:"2,keyasint" json:"off"` // bytes
	Size uint32 `cbor:"3,keyasint" json:"size"`
}

// TaskState is what a task was doing when it was frozen.
type TaskState uint8

// The states of a task. The numbers are part of the format.
const (
	TaskRunning TaskState = 1 // running, or asleep in a syscall
	TaskStopped TaskState = 2 // job-control stop (SIGSTOP, SIGTSTP …): restored stopped
	TaskZombie  TaskState = 3 // exited, not yet waited for: only identity and ExitStatus count
)

// Task is one process: a thread group.
type Task struct {
	PID        int32     `cbor:"1,keyasint" json:"pid"`
	PPID       int32     `cbor:"2,keyasint" json:"ppid"`
	PGID       int32     `cbor:"3,keyasint" json:"pgid"`
	SID        int32     `cbor:"4,keyasint" json:"sid"`
	State      TaskState `cbor:"5,keyasint" json:"state"`
	ExitSignal int32     `cbor:"6,keyasint" json:"exit_signal"`           // sent to the parent at exit; stat field 38
	ExitStatus int32     `cbor:"7,keyasint,omitempty" json:"exit_status"` // zombies: wait status as in stat field 52
	StopSignal int32     `cbor:"8,keyasint,omitempty" json:"stop_signal"` // stopped tasks: the signal that stopped it
	Comm       string    `cbor:"9,keyasint" json:"comm"`                  // zombies too

	MM      ObjRef   `cbor:"10,keyasint,omitempty" json:"mm"`
	Sighand ObjRef   `cbor:"11,keyasint,omitempty" json:"sighand"`
	Threads []Thread `cbor:"12,keyasint,omitempty" json:"threads"` // the leader first

	Pending     [][]byte     `cbor:"13,keyasint,omitempty" json:"pending,omitempty"` // process-wide queued signals, siginfo_t of 128 bytes each, in order
	ITimers     [3]ITimer    `cbor:"14,keyasint" json:"itimers"`                     // ITIMER_REAL, VIRTUAL, PROF
	Rlimits     []Rlimit     `cbor:"15,keyasint,omitempty" json:"rlimits"`           // by resource number
	OOMScoreAdj int32        `cbor:"16,keyasint" json:"oom_score_adj"`
	Personality uint32       `cbor:"17,keyasint" json:"personality"`
	Subreaper   bool         `cbor:"18,keyasint,omitempty" json:"subreaper,omitempty"` // PR_SET_CHILD_SUBREAPER
	Timers      []POSIXTimer `cbor:"19,keyasint,omitempty" json:"timers,omitempty"`
	CtlTTY      ObjRef       `cbor:"20,keyasint,omitempty" json:"ctl_tty,omitempty"` // session leaders: File whose terminal controls the session
	AutoNice    int32        `cbor:"21,keyasint,omitempty" json:"autogroup_nice,omitempty"`
	XCompPerm   uint64       `cbor:"22,keyasint,omitempty" json:"xcomp_perm,omitempty"` // vector state that it asked for with ARCH_REQ_XCOMP_PERM: AMX tiles
	Foreground  int32        `cbor:"23,keyasint,omitempty" json:"tty_pgid,omitempty"`   // with CtlTTY: its foreground process group (tcgetpgrp(3)); 0: that of the leader
}

// Thread is one task_struct.
type Thread struct {
	TID        int32     `cbor:"1,keyasint" json:"tid"`
	Comm       string    `cbor:"2,keyasint" json:"comm"`
	Regs       []byte    `cbor:"3,keyasint" json:"regs"`                        // struct user_regs_struct, as at the point where it goes on (syscall restart already applied)
	XState     []byte    `cbor:"4,keyasint" json:"xstate"`                      // NT_X86_XSTATE
	SigMask    uint64    `cbor:"5,keyasint" json:"sigmask"`                     // bit n-1 is signal n
	Pending    [][]byte  `cbor:"6,keyasint,omitempty" json:"pending,omitempty"` // queued to this thread, siginfo_t of 128 bytes each
	AltStack   AltStack  `cbor:"7,keyasint" json:"altstack"`
	RobustList uint64    `cbor:"8,keyasint,omitempty" json:"robust_list"` // head; its length is always 24
	ClearTID   uint64    `cbor:"9,keyasint,omitempty" json:"clear_tid"`   // clear_child_tid
	Rseq       Rseq      `cbor:"10,keyasint" json:"rseq"`
	Creds      Creds     `cbor:"11,keyasint" json:"creds"`
	Sched      Sched     `cbor:"12,keyasint" json:"sched"`
	FDTable    ObjRef    `cbor:"13,keyasint" json:"fd_table"`
	FS         ObjRef    `cbor:"14,keyasint" json:"fs"`
	Prctl      Prctl     `cbor:"15,keyasint" json:"prctl"`
	Blocked    *Blocked  `cbor:"16,keyasint,omitempty" json:"blocked,omitempty"`
	SUD        []byte    `cbor:"17,keyasint,omitempty" json:"sud,omitempty"`     // struct ptrace_sud_config, if syscall user dispatch is on
	Seccomp    []Seccomp `cbor:"18,keyasint,omitempty" json:"seccomp,omitempty"` // oldest filter first

	MemPolicy *MemPolicy `cbor:"30,keyasint,omitempty" json:"mem_policy,omitempty"` // set_mempolicy(2); nil: the default
}

// Blocked tells of a timed syscall that a thread was asleep in and that only the kernel's
// restart block could continue: the restorer issues it anew for the time that was left.
type Blocked struct {
	NR        uint32    `cbor:"1,keyasint" json:"nr"`        // syscall number
	Args      [6]uint64 `cbor:"2,keyasint" json:"args"`      // as the thread gave them
	Remaining int64     `cbor:"3,keyasint" json:"remaining"` // ns left at the freeze; -1: unknown, wait in full; -2: none or absolute, issue it with the same arguments
}

// AltStack is stack_t of sigaltstack(2).
type AltStack struct {
	SP    uint64 `cbor:"1,keyasint" json:"sp"`
	Flags uint32 `cbor:"2,keyasint" json:"flags"`
	Size  uint64 `cbor:"3,keyasint" json:"size"`
}

// Rseq is a thread's rseq(2) registration; Ptr 0 means none.
type Rseq struct {
	Ptr   uint64 `cbor:"1,keyasint,omitempty" json:"ptr"`
	Size  uint32 `cbor:"2,keyasint,omitempty" json:"size"`
	Sig   uint32 `cbor:"3,keyasint,omitempty" json:"sig"`
	Flags uint32 `cbor:"4,keyasint,omitempty" json:"flags"`
}

// Creds is a thread's credentials(7).
type Creds struct {
	UID        [4]uint32 `cbor:"1,keyasint" json:"uid"` // real, effective, saved, filesystem
	GID        [4]uint32 `cbor:"2,keyasint" json:"gid"`
	Groups     []uint32  `cbor:"3,keyasint" json:"groups"`
	Inh        uint64    `cbor:"4,keyasint" json:"cap_inh"`
	Prm        uint64    `cbor:"5,keyasint" json:"cap_prm"`
	Eff        uint64    `cbor:"6,keyasint" json:"cap_eff"`
	Bnd        uint64    `cbor:"7,keyasint" json:"cap_bnd"`
	Amb        uint64    `cbor:"8,keyasint" json:"cap_amb"`
	Securebits uint32    `cbor:"9,keyasint" json:"securebits"`
	NoNewPrivs bool      `cbor:"10,keyasint,omitempty" json:"no_new_privs"`
}

// Sched is what sched(7), ioprio_set(2) and PR_SET_TIMERSLACK set for one thread.
type Sched struct {
	Policy     uint32 `cbor:"1,keyasint" json:"policy"`
	Flags      uint64 `cbor:"2,keyasint,omitempty" json:"flags"` // SCHED_FLAG_RESET_ON_FORK
	Nice       int32  `cbor:"3,keyasint" json:"nice"`
	Priority   uint32 `cbor:"4,keyasint" json:"priority"`
	Runtime    uint64 `cbor:"5,keyasint,omitempty" json:"runtime,omitempty"` // custom slice of SCHED_OTHER, ns; 0: the default
	Affinity   []byte `cbor:"8,keyasint" json:"affinity"`                    // cpu_set_t, little endian
	IOPrio     uint32 `cbor:"9,keyasint" json:"ioprio"`                      // ioprio_get(2)
	TimerSlack uint64 `cbor:"10,keyasint" json:"timer_slack"`                // ns
	AllCPUs    bool   `cbor:"11,keyasint,omitempty" json:"all_cpus"`         // Affinity held every CPU of that machine
}

// Prctl is per-thread state that only prctl(2) reads.
type Prctl struct {
	PDeathSig uint32 `cbor:"1,keyasint,omitempty" json:"pdeathsig,omitempty"`
	TSC       uint32 `cbor:"2,keyasint,omitempty" json:"tsc,omitempty"`            // PR_GET_TSC
	MCEKill   uint32 `cbor:"3,keyasint,omitempty" json:"mce_kill,omitempty"`       // PR_MCE_KILL_GET
	IOFlusher bool   `cbor:"4,keyasint,omitempty" json:"io_flusher,omitempty"`     // PR_GET_IO_FLUSHER
	SpecStore uint32 `cbor:"5,keyasint,omitempty" json:"spec_store,omitempty"`     // PR_GET_SPECULATION_CTRL, store bypass
	SpecBTB   uint32 `cbor:"6,keyasint,omitempty" json:"spec_btb,omitempty"`       // indirect branch
	SpecL1D   uint32 `cbor:"7,keyasint,omitempty" json:"spec_l1d,omitempty"`       // L1D flush
	CPUID     uint32 `cbor:"8,keyasint,omitempty" json:"cpuid_faulting,omitempty"` // 1: ARCH_SET_CPUID has turned CPUID off
}

// Seccomp is one filter of seccomp(2).
type Seccomp struct {
	Filter []byte `cbor:"1,keyasint" json:"filter"` // struct sock_filter each 8 bytes
	Flags  uint32 `cbor:"2,keyasint,omitempty" json:"flags"`
}

// ITimer is struct itimerval, in microseconds; Value 0 means disarmed.
type ITimer struct {
	Interval int64 `cbor:"1,keyasint,omitempty" json:"interval"`
	Value    int64 `cbor:"2,keyasint,omitempty" json:"value"`
}

// POSIXTimer is one timer of timer_create(2).
type POSIXTimer struct {
	ID       int32  `cbor:"1,keyasint" json:"id"`
	Clock    int32  `cbor:"2,keyasint" json:"clock"`
	Notify   int32  `cbor:"3,keyasint" json:"notify"` // sigev_notify
	Signal   int32  `cbor:"4,keyasint" json:"signal"`
	SigValue uint64 `cbor:"5,keyasint" json:"sigvalue"`
	TID      int32  `cbor:"6,keyasint,omitempty" json:"tid"` // SIGEV_THREAD_ID
	Interval int64  `cbor:"7,keyasint" json:"interval"`      // ns
	Value    int64  `cbor:"8,keyasint" json:"value"`         // ns left; 0: disarmed
	Overrun  int32  `cbor:"9,keyasint,omitempty" json:"overrun"`
}

// Rlimit is one limit of prlimit(2); RLIM_INFINITY is all ones.
type Rlimit struct {
	Cur uint64 `cbor:"1,keyasint" json:"cur"`
	Max uint64 `cbor:"2,keyasint" json:"max"`
}

// MM is one address space.
type MM struct {
	StartCode  uint64 `cbor:"1,keyasint" json:"start_code"` // the fields of struct prctl_mm_map
	EndCode    uint64 `cbor:"2,keyasint" json:"end_code"`
	StartData  uint64 `cbor:"3,keyasint" json:"start_data"`
	EndData    uint64 `cbor:"4,keyasint" json:"end_data"`
	StartBrk   uint64 `cbor:"5,keyasint" json:"start_brk"`
	Brk        uint64 `cbor:"6,keyasint" json:"brk"`
	StartStack uint64 `cbor:"7,keyasint" json:"start_stack"`
	ArgStart   uint64 `cbor:"8,keyasint" json:"arg_start"`
	ArgEnd     uint64 `cbor:"9,keyasint" json:"arg_end"`
	EnvStart   uint64 `cbor:"10,keyasint" json:"env_start"`
	EnvEnd     uint64 `cbor:"11,keyasint" json:"env_end"`
	Auxv       []byte `cbor:"12,keyasint" json:"auxv"`

	Exe        MappedFile `cbor:"13,keyasint" json:"exe"`
	VMAs       []VMA      `cbor:"14,keyasint" json:"vmas"` // by address, not overlapping
	Dumpable   uint32     `cbor:"15,keyasint" json:"dumpable"`
	THPDisable uint32     `cbor:"16,keyasint,omitempty" json:"thp_disable,omitempty"` // PR_GET_THP_DISABLE
	MDWE       uint32     `cbor:"17,keyasint,omitempty" json:"mdwe,omitempty"`        // PR_GET_MDWE
	KSM        bool       `cbor:"18,keyasint,omitempty" json:"ksm,omitempty"`         // PR_GET_MEMORY_MERGE
	CoreFilter uint32     `cbor:"19,keyasint" json:"coredump_filter"`
	LockFuture uint32     `cbor:"20,keyasint,omitempty" json:"lock_future,omitempty"` // MCL_FUTURE|MCL_ONFAULT if mlockall(2) set it
	Membarrier uint32     `cbor:"21,keyasint,omitempty" json:"membarrier,omitempty"`  // MEMBARRIER_CMD_REGISTER_* commands that were given
	ExeSegment ObjRef     `cbor:"22,keyasint,omitempty" json:"exe_segment,omitempty"` // Exe was deleted: the segment that holds it
	ExeWas     string     `cbor:"23,keyasint,omitempty" json:"exe_was,omitempty"`     // the deleted name that /proc showed, if Exe was found under another one
	Leftovers  []Leftover `cbor:"30,keyasint,omitempty" json:"leftovers,omitempty"`   // what a killed checkpoint left in the vdso, and a signal handler may return into
}

// Leftover is some bytes in the vdso that are not the kernel's.
type Leftover struct {
	Off   uint32 `cbor:"1,keyasint" json:"off"` // from the start of the vdso
	Bytes []byte `cbor:"2,keyasint" json:"bytes"`
}

// VMAKind says where the pages of a VMA come from.
type VMAKind uint8

// The kinds of VMA. The numbers are part of the format.
const (
	VMAAnon        VMAKind = 1 // private anonymous: heap, stack, malloc
	VMAFilePrivate VMAKind = 2 // private mapping of File; Extents hold the pages that were copied on write
	VMAFileShared  VMAKind = 3 // shared mapping of File; no pages in the image
	VMASegment     VMAKind = 4 // mapping of Segment, shared or (memfd, deleted file) private, by Flags
	VMAVDSO        VMAKind = 5 // [vdso]
	VMAVvar        VMAKind = 6 // [vvar], [vvar_vclock]: mapped by the kernel with the vdso
	VMARing        VMAKind = 7 // mapping of an io_uring: the File of that kind says which part
	VMAAIO         VMAKind = 8 // ring of an AIO context (io_setup(2))
)

// VMA is one virtual memory area.
type VMA struct {
	Start   uint64     `cbor:"1,keyasint" json:"start"`
	End     uint64     `cbor:"2,keyasint" json:"end"`
	Kind    VMAKind    `cbor:"3,keyasint" json:"kind"`
	Prot    uint32     `cbor:"4,keyasint" json:"prot"`              // PROT_*
	Flags   uint32     `cbor:"5,keyasint" json:"flags"`             // MAP_SHARED, MAP_PRIVATE or MAP_DROPPABLE, MAP_GROWSDOWN, MAP_NORESERVE, MAP_HUGETLB|size
	VMFlags []string   `cbor:"6,keyasint,omitempty" json:"vmflags"` // VmFlags of smaps, as the kernel names them
	Offset  uint64     `cbor:"7,keyasint,omitempty" json:"offset"`  // into File or Segment, bytes
	File    MappedFile `cbor:"8,keyasint,omitzero" json:"file,omitzero"`
	Segment ObjRef     `cbor:"9,keyasint,omitempty" json:"segment,omitempty"`
	Name    string     `cbor:"10,keyasint,omitempty" json:"name,omitempty"` // "[heap]", "[stack]", "[anon:NAME]"; for people, and for PR_SET_VMA_ANON_NAME
	Extents []Extent   `cbor:"11,keyasint,omitempty" json:"extents,omitempty"`
	THP     bool       `cbor:"12,keyasint,omitempty" json:"thp,omitempty"`    // held huge pages: refilled with huge pages
	Guards  []Extent   `cbor:"13,keyasint,omitempty" json:"guards,omitempty"` // guard regions (MADV_GUARD_INSTALL)
	Was     string     `cbor:"14,keyasint,omitempty" json:"was,omitempty"`    // the deleted name that maps showed, if File was found under another one

	MemPolicy *MemPolicy `cbor:"15,keyasint,omitempty" json:"mem_policy,omitempty"` // mbind(2); nil: that of the thread
	AIO       *AIO       `cbor:"16,keyasint,omitempty" json:"aio,omitempty"`        // of VMAAIO
}

// Extent is a run of pages that the image holds. Start and Len are multiples of the
// page size; for a VMA Start is an address, for a Segment an offset. The bytes stand in
// the data section in the order MMs (by VMA, by extent), Segments, Blobs.
type Extent struct {
	Start uint64 `cbor:"1,keyasint" json:"start"`
	Len   uint64 `cbor:"2,keyasint" json:"len"`
}

// MappedFile identifies a file that memory, exe or a path depends on.
type MappedFile struct {
	Path  string `cbor:"1,keyasint,omitempty" json:"path"`
	Dev   uint64 `cbor:"2,keyasint,omitempty" json:"dev"`
	Ino   uint64 `cbor:"3,keyasint,omitempty" json:"ino"`
	Size  int64  `cbor:"4,keyasint,omitempty" json:"size"`
	MTime int64  `cbor:"5,keyasint,omitempty" json:"mtime"` // Unix ns
	Mode  uint32 `cbor:"6,keyasint,omitempty" json:"mode"`  // st_mode
}

// Segment is memory that lives in no named file: MAP_SHARED|MAP_ANONYMOUS, a memfd, shared memory of
// System V, or a file that was deleted and is mapped or executed, perhaps open as well.
type Segment struct {
	Memfd   bool     `cbor:"1,keyasint,omitempty" json:"memfd"`
	Name    string   `cbor:"2,keyasint,omitempty" json:"name"`  // memfd name
	Size    int64    `cbor:"3,keyasint" json:"size"`            // bytes
	Seals   uint32   `cbor:"4,keyasint,omitempty" json:"seals"` // F_GET_SEALS
	Mode    uint32   `cbor:"5,keyasint,omitempty" json:"mode"`  // st_mode
	UID     uint32   `cbor:"6,keyasint,omitempty" json:"uid"`
	GID     uint32   `cbor:"7,keyasint,omitempty" json:"gid"`
	Extents []Extent `cbor:"8,keyasint,omitempty" json:"extents"`

	Path   string  `cbor:"9,keyasint,omitempty" json:"path,omitempty"`    // deleted file: where it was
	ATime  int64   `cbor:"10,keyasint,omitempty" json:"atime,omitempty"`  // deleted file: Unix ns
	MTime  int64   `cbor:"11,keyasint,omitempty" json:"mtime,omitempty"`  // deleted file: Unix ns
	Huge   uint32  `cbor:"13,keyasint,omitempty" json:"huge,omitempty"`   // huge pages (hugetlb): log2 of their size
	XAttrs []XAttr `cbor:"12,keyasint,omitempty" json:"xattrs,omitempty"` // deleted file: user.*

	SysV *SysVShm `cbor:"14,keyasint,omitempty" json:"sysv,omitempty"`
}

// XAttr is an extended attribute (xattr(7)) of a file.
type XAttr struct {
	Name  string `cbor:"1,keyasint" json:"name"`
	Value []byte `cbor:"2,keyasint" json:"value"`
}

// Blob is raw bytes in the data section, padded there to the page size.
type Blob struct {
	Len int64 `cbor:"1,keyasint" json:"len"`
}

// FDTable is one table of descriptors (files_struct).
type FDTable struct {
	FDs []FD `cbor:"1,keyasint" json:"fds"` // ascending
}

// FD is one slot of a table.
type FD struct {
	Num     int32  `cbor:"1,keyasint" json:"num"`
	File    ObjRef `cbor:"2,keyasint" json:"file"`
	CloExec bool   `cbor:"3,keyasint,omitempty" json:"cloexec,omitempty"`
}

// FS is cwd, root and umask (fs_struct).
type FS struct {
	Cwd   string `cbor:"1,keyasint" json:"cwd"`
	Root  string `cbor:"2,keyasint" json:"root"`
	Umask uint32 `cbor:"3,keyasint" json:"umask"`

	CwdFile File `cbor:"4,keyasint,omitzero" json:"cwd_file,omitzero"` // a working directory that was deleted: as if it were open, of kind dir
}

// Sighand is one table of signal actions; signals that have the default action are not in it.
type Sighand struct {
	Actions []Sigaction `cbor:"1,keyasint" json:"actions"` // ascending
}

// Sigaction is the kernel's struct sigaction for one signal.
type Sigaction struct {
	Signal   int32  `cbor:"1,keyasint" json:"signal"`
	Handler  uint64 `cbor:"2,keyasint" json:"handler"`
	Flags    uint64 `cbor:"3,keyasint" json:"flags"`
	Restorer uint64 `cbor:"4,keyasint" json:"restorer"`
	Mask     uint64 `cbor:"5,keyasint" json:"mask"`
}

// File is one open file description (struct file), whoever shares it.
type File struct {
	Kind    string          `cbor:"1,keyasint" json:"kind"`           // name of the kind in package kind
	Flags   uint32          `cbor:"2,keyasint" json:"flags"`          // F_GETFL: access mode and status flags
	Pos     int64           `cbor:"3,keyasint,omitempty" json:"pos"`  // offset; 0 where there is none
	Path    string          `cbor:"4,keyasint,omitempty" json:"path"` // readlink of /proc/PID/fd/N
	Owner   FOwner          `cbor:"5,keyasint,omitzero" json:"owner,omitzero"`
	Rec     cbor.RawMessage `cbor:"6,keyasint,omitempty" json:"rec"` // the kind's own record
	Blob    ObjRef          `cbor:"7,keyasint,omitempty" json:"blob,omitempty"`
	Segment ObjRef          `cbor:"8,keyasint,omitempty" json:"segment,omitempty"` // memfd or mapped deleted file: the memory behind it

	Locks      []Lock   `cbor:"40,keyasint,omitempty" json:"locks,omitempty"`
	OwnerBy    []uint32 `cbor:"41,keyasint,omitempty" json:"owner_by,omitempty"`    // real and effective uid of who named Owner (F_GETOWNER_UIDS): what it may signal
	OwnerStart uint64   `cbor:"42,keyasint,omitempty" json:"owner_start,omitempty"` // with OwnerBy, an Owner outside the tree: when it started, field 22 of stat; 0: not known
}

// FOwner is who gets SIGIO: F_GETOWN_EX and F_GETSIG.
type FOwner struct {
	Type   int32  `cbor:"1,keyasint,omitempty" json:"type"`
	PID    int32  `cbor:"2,keyasint,omitempty" json:"pid"`
	Signal int32  `cbor:"3,keyasint,omitempty" json:"signal"`
	UID    uint32 `cbor:"4,keyasint,omitempty" json:"uid"`
	EUID   uint32 `cbor:"5,keyasint,omitempty" json:"euid"`
}
