// Package kind knows the kinds of open files: how each is found out, described in an
// image and made anew.
//
// A file crosses the border of a process as a descriptor: the checkpoint fetches it with
// pidfd_getfd(2), the restore opens it here and sends it over with SCM_RIGHTS. So a kind is
// ordinary Go code on a descriptor of our own process and knows nothing of ptrace. What only
// the process itself can do is a late step, see Finisher.
//
// Two records describe the files of a tree, as in the 2009 kernel series this descends from:
// image.FD is a number in a process's table with its close-on-exec flag, image.File is the
// open file description behind it, recorded once however many slots point at it.
//
// To add a kind: write NAME.go and NAME_test.go in this folder and add one line to All.
package kind

import (
	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/netlock"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"golang.org/x/sys/unix"
)

// Kind knows one kind of open file, both ways.
//
// Dump must not disturb: the descriptor it gets shares offset, status flags and content with
// a live process. It may not seek it, set its flags or consume what is in it.
type Kind interface {
	// Name is the tag in the image. It never changes once released.
	Name() string
	// Match reports whether the file is of this kind. At most one kind of All matches.
	Match(f *Found) bool
	// Check lists what of the file cannot be kept, refusals and losses. It changes nothing
	// and works on running processes; explain and checkpoint both call it.
	Check(f *Found, s *Scene) []image.Finding
	// Dump fills the record: Rec, Blob, Segment. Kind, Flags, Pos, Path and Owner are filled in
	// already and may be corrected. It is only called when Check refused nothing.
	Dump(f *Found, s *Scene, rec *image.File) error
	// Open makes an equal file and returns a descriptor of it with close-on-exec, opened by
	// a thread that has the filesystem credentials of the user it belonged to. Position, status
	// flags and owner have to be right on return.
	Open(rec *image.File, e *Env) (fd int, err error)
}

// Checker is a kind that can tell before anything is restored whether Open would fail.
type Checker interface {
	// CheckOpen returns why the file cannot be opened as it was; it opens nothing for good.
	// warn is what NAME.log should say although it can be restored, or "".
	CheckOpen(rec *image.File, e *Env) (warn string, err error)
}

// Independent is a kind of which several files may be checked and opened at the same time: they share nothing with others
// but sentences for NAME.log.
type Independent interface {
	Independent(rec *image.File) bool
}

// Finisher is a kind with a step that restored processes themselves have to do, after all
// their descriptors have their final numbers.
type Finisher interface {
	// FinishPIDs lists the processes, and the threads with a descriptor table of their own, in which Finish
	// has to be called for the file. All of them have it open. More than one is rare: workers that share an epoll instance.
	FinishPIDs(rec *image.File) ([]int32, error)
	// Finish is called once in each of these processes, which holds the file under the number fd.
	Finish(rec *image.File, fd int, p Process) error
}

// Starter is a kind with a step that starts a clock: it is taken when everything else of the
// process is as it was, in the process that is the first to have the file.
type Starter interface {
	// Start is called once; the process holds the file under the number fd.
	Start(rec *image.File, fd int, p Process) error
}

// Later is a kind of files that are about processes, or that a process has to make: Open is called when all processes and
// threads of the tree are there, but before any of them has a descriptor.
type Later interface {
	// Dead tells of the processes that the file is about and that had ended and been reaped. The
	// restore makes them for Open (Env.Dead); they end when all is open.
	Dead(rec *image.File) ([]Dead, error)
}

// Apart is a kind of files that cannot be sent by SCM_RIGHTS: processes fetch them with pidfd_getfd(2).
type Apart interface{ Apart() }

// FinishThreader is a Finisher whose step is for a certain thread of a process.
type FinishThreader interface {
	// FinishThread returns the thread of a process that FinishPIDs lists in which Finish is called.
	FinishThread(rec *image.File, pid int32) (tid int32)
}

// Dead is a process that is not there any more, and that files are about.
type Dead struct {
	Key    string // files with the same key are about the same one
	PID    int    // the id it had, to be had again if it is free; 0: any will do
	Status uint32 // the wait status with which it ends
}

// Process is what a Finisher or Starter may do in a restored process.
type Process interface {
	// Syscall runs one system call in the process.
	Syscall(nr uintptr, args ...uint64) (uint64, error)
	// Put copies bytes to scratch memory of the process that stays valid until the next Put,
	// and returns their address there.
	Put(b []byte) (addr uint64, err error)
	// PID is the process's id, or that of the thread if its own descriptor table is meant.
	PID() int
}

// Found is one open file description as a checkpoint found it.
type Found struct {
	FD    int           // our own duplicate of it
	Link  string        // readlink of /proc/PID/fd/NUM
	Info  procfs.FDInfo // /proc/PID/fdinfo/NUM
	Stat  unix.Stat_t   // fstat
	Flags uint32        // F_GETFL
	Locks []HeldLock    // what AddLocks has found
	Owner image.FOwner  // who gets its SIGIO, see ReadOwner
	Slots []Slot        // every descriptor of the tree that points at it; Slots[0] is where it was found
	Ref   image.ObjRef  // its place in Manifest.Files
	// Carrier is the socket in whose queue the file waits, if no process has it open (SCM_RIGHTS of
	// unix(7)). Its only slot is one of our own.
	Carrier *Found
	// Twin is another open file description of the very same name in the same mount, as the kernel's memory tells; nil: none
	// is known. It has no Twin itself.
	Twin *Found

	inet   *inetKind  // of a network socket, see ofInet
	family *int       // of a socket, see domain
	cred   *peerOf    // of a unix socket, see peerCred
	at     *location  // see locate
	fs     *int64     // see fsType
	known  *sockState // of a socket that is as the look has found it, see SockMemo
	end    *otherSide // of a TCP connection, see otherEnd
}

// Place is where to tell the user to look for the file.
func (f *Found) Place() Slot {
	for f.Carrier != nil {
		f = f.Carrier
	}
	return f.Slots[0]
}

// Slot is one descriptor of one process.
type Slot struct {
	PID int32 // or the id of a thread with a descriptor table of its own
	Num int32
}

// Scene is what a kind may ask about the rest of the tree.
type Scene struct {
	Files []*Found // every open file description of the tree
	// Outside returns the pid of a process outside the tree that holds a descriptor of the
	// pipe, fifo, socket or terminal with these device and inode numbers and the wanted access
	// (unix.O_RDONLY: can read, unix.O_WRONLY: can write), or 0.
	Outside func(dev, ino uint64, access int) int
	// Blob puts bytes into the image.
	Blob func(b []byte) image.ObjRef
	// Segment returns the shared memory behind a memfd.
	Segment func(f *Found) (image.ObjRef, error)
	// MapsGone reports whether the tree maps or executes the deleted file with these numbers; nil: no.
	MapsGone func(dev, ino uint64) bool
	// OtherName looks for another link of a file that is not where its name leads any more, and returns its path, or "".
	OtherName func(path string, st *unix.Stat_t) string
	// Gone returns the segment that holds such a file. writes says that f can write to it.
	Gone func(f *Found, path string, writes bool) (image.ObjRef, error)
	// Maps reports whether the tree maps or executes the file with these numbers by its name; nil: no.
	Maps func(dev, ino uint64) bool
	// Member reports whether a process or thread id is one of the tree, zombies too; nil: none is.
	Member func(id int) bool
	// Hush keeps the packets of connections away until the tree goes on, or, if it is killed, until
	// its restore; nil: it goes on at once, and nothing is to be noticed by anybody.
	Hush func([]netlock.Conn) error
	// Tracers are those of our threads that keep the tree still.
	Tracers []int
	// Still says that the tree stands still, and that Files has those that are under way, too.
	Still bool
	// Rings has every io_uring that a look has found; true: it had no requests in flight when the tree had just been
	// stopped (QuietRings); nil: nobody asks.
	Rings map[uint64]bool
	// Policy has the policies that were chosen for the checkpoint.
	Policy policy.Set
	// Root leads from here to the root directory of the tree: "/", or /proc/PID/root.
	Root string

	inodes      map[[2]uint64][]*Found    // Files by device and inode, see sharing
	sorted      int                       // how many of Files are in it
	watched     map[*Found][]inotifyWatch // of inotify instances, see watches
	sockets     map[uint32]*unixInfo      // of all unix sockets by inode number, see socket
	sockDev     uint64                    // the device of their inodes
	packets     map[uint32]*packetInfo    // of all packet sockets by inode number, see packet
	fresh       sockDefaults              // options of new network sockets
	memberships []groupKey                // of all sockets in multicast groups, see groups
	conns       map[ends]*Found           // TCP connections, see connected
	inetOpts    map[*Found][]sockOpt      // the options of all network sockets, see options
	conned      map[ends]*inetRec         // those that were dumped, see gap
	hushed      bool                      // the connections to the outside are
	peeked      map[*Found]*tcpPeek       // what the connections that are kept hold, see stillConn
	quiet       map[*Found]*tcpQueues     // and those of them in which nothing waits, see peekQuiet
	lines       map[ends]inetLine         // of all TCP sockets, see tcpLines
	holdersOf   map[uint64]int            // the processes that have them, by inode
	unaccepted  *unaccepted               // see waitingFor
	unixAccept  map[*Found]unixAccept     // see unixSent
	waits       map[uint32]uint32         // who waits to be accepted by whom, see waitsFor
	freshes     map[int][]unixOpt         // the options of a new socket, by type
	unixOpts    map[*Found][]unixOpt      // all options of all unix sockets, see unixOptions
	staying     map[int]bool              // processes that SO_PEERCRED can name after a restore, see stays
	masters     map[ptyKey]*Found         // of pseudoterminals, see ptys
	mastersOf   int                       // how many of Files are in it
	holders     []masterHolder            // of masters outside the tree, see masterOutside
	holdersRead bool
	pushAsked   bool
	pushErr     error // why TIOCSTI is not allowed, see alone
}

// mapped reports whether the tree maps or executes the deleted file f.
func (s *Scene) mapped(f *Found) bool { return s.MapsGone != nil && s.MapsGone(f.Stat.Dev, f.Stat.Ino) }

// member reports whether a process or thread id is one of the tree.
func (s *Scene) member(id int) bool { return s.Member != nil && s.Member(id) }

// sharing returns every open file description of the inode of f, f among them if it is one of
// Files, in their order; those opened with O_PATH do not count.
func (s *Scene) sharing(f *Found) []*Found {
	if s.sorted != len(s.Files) {
		s.inodes, s.sorted = map[[2]uint64][]*Found{}, len(s.Files)
		for _, g := range s.Files {
			if g.Flags&unix.O_PATH == 0 {
				key := [2]uint64{g.Stat.Dev, g.Stat.Ino}
				s.inodes[key] = append(s.inodes[key], g)
			}
		}
	}
	return s.inodes[[2]uint64{f.Stat.Dev, f.Stat.Ino}]
}

// Finding starts a finding about f with its first slot filled in.
func (f *Found) Finding(sev image.Severity, kind, what, remedy string) image.Finding {
	at := f.Place()
	if f.Carrier != nil {
		kind += ", under way in " + f.Carrier.Link
	}
	return image.Finding{Severity: sev, PID: at.PID, FD: at.Num, Kind: kind, What: what, Remedy: remedy}
}

// Env is what Open has at hand during a restore.
type Env struct {
	Manifest *image.Manifest
	// Blob returns bytes that Scene.Blob put into the image.
	Blob func(ref image.ObjRef) ([]byte, error)
	// Segment returns a descriptor, owned by the caller of Open's driver, of the memory that
	// Scene.Segment recorded; it may be opened anew through /proc/self/fd.
	Segment func(ref image.ObjRef) (fd int, err error)
	// Out returns a new descriptor, opened for appending, of the file that takes what the
	// restored tree writes to terminals and pipes whose other end is gone.
	Out func() (fd int, err error)
	// Dead has the id of the process that stands for the Dead with that key, while it is alive.
	Dead map[string]int
	// In runs f with a process or thread of the image or one of Dead, by its id, for Open of a Later kind. Nothing but the
	// stub runs in it, with our own credentials, and it has no descriptors of its own yet.
	In func(pid int, f func(p Process) error) error
	// File returns a descriptor of our own of another file of the image, for Open of a Later kind.
	File func(ref image.ObjRef) (fd int, err error)
	// Help says that what a process could not do itself is done with our own credentials: who asked
	// for the restore may do all that anyway. Otherwise an image must not get more by us than he could.
	Help bool
	// Helping says that this is being done: the process that is to have the file may not open it itself.
	Helping bool
	// Policy has the policies that were chosen for the restore, and at the checkpoint.
	Policy policy.Set
	// Undo keeps what takes back something that Open has made and that would stay if the restore fails; nil: nobody does.
	Undo func(f func() error)
	// Last keeps what is done when the tree is whole and before any of it runs; what fails there
	// fails the restore.
	Last func(f func() error)
	// Warn adds a line to NAME.log.
	Warn func(format string, args ...any)
	// Shared keeps what several files of one restore share, such as the two ends of a pipe,
	// under a key that a kind chooses (its name and an inode number). Values that implement
	// io.Closer are closed when every file has been opened: only then is what they make complete,
	// so that an error of Close fails the restore.
	Shared map[string]any
}

// rigor says which changes of open files are refused. Without ownOnly an image could name any file, and have
// its processes get it.
func (e *Env) rigor() rigor {
	switch set := e.Policy.Get("files"); {
	case set == "strict":
		return strictly
	case e.Helping && set != "any":
		return ownOnly
	}
	return lenient
}

// strict reports whether any change of an open file is refused.
func (e *Env) strict() bool { return e.rigor() == strictly }
