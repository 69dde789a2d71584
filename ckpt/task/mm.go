package task

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/procfs"
	"github.com/ckptfs/ckptfs/ckpt/ptrace"
	"github.com/ckptfs/ckptfs/ckpt/quickread"
	"golang.org/x/sys/unix"
)

const (
	mmMapSize = 104  // struct prctl_mm_map
	maxAuxv   = 4096 // more than any kernel keeps; a bound for what an image may claim

	dumpDisable  = 0 // SUID_DUMP_DISABLE
	dumpUser     = 1 // SUID_DUMP_USER
	dumpRoot     = 2 // SUID_DUMP_ROOT: only from fs.suid_dumpable, prctl refuses it
	suidDumpable = "/proc/sys/fs/suid_dumpable"
)

// readMMOutside fills in what /proc tells of an address space; brk and what only prctl(2)
// tells come with readMMInside.
func readMMOutside(pid int, mm *image.MM) error {
	st, err := readStat(pid, 0)
	if err != nil {
		return err
	}
	mm.StartCode, mm.EndCode, mm.StartData, mm.EndData = st.StartCode, st.EndCode, st.StartData, st.EndData
	mm.StartBrk, mm.StartStack = st.StartBrk, st.StartStack
	mm.ArgStart, mm.ArgEnd, mm.EnvStart, mm.EnvEnd = st.ArgStart, st.ArgEnd, st.EnvStart, st.EnvEnd
	if mm.Auxv, err = quickread.File(taskPath(pid, 0, "auxv")); err != nil {
		return err
	}
	if mm.CoreFilter, err = readCoreFilter(pid); err != nil {
		return err
	}
	mm.Exe, err = readExe(pid)
	return err
}

// readExe identifies the executable. Its path may lead to another file by now, or to none; whoever
// restores it has to find out.
func readExe(pid int) (image.MappedFile, error) {
	var f image.MappedFile
	link := taskPath(pid, 0, "exe")
	path, err := os.Readlink(link)
	if err != nil {
		return f, err
	}
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		return f, &os.PathError{Op: "stat", Path: link, Err: err}
	}
	return image.MappedFile{Path: path, Dev: st.Dev, Ino: st.Ino, Size: st.Size, MTime: st.Mtim.Nano(), Mode: st.Mode}, nil
}

// readCoreFilter reads /proc/PID/coredump_filter, see core(5).
func readCoreFilter(pid int) (uint32, error) {
	b, err := quickread.File(taskPath(pid, 0, "coredump_filter"))
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 32)
	return uint32(v), err
}

func writeCoreFilter(pid int, want uint32) error {
	has, err := readCoreFilter(pid)
	if err != nil || has == want {
		return err
	}
	return writeFile(taskPath(pid, 0, "coredump_filter"), fmt.Sprintf("%#x", want))
}

// readMMInside queues what only the process itself can ask about its address space.
func readMMInside(q *queue, status procfs.Status, mm *image.MM) {
	b := q.b
	brk := b.Call(unix.SYS_BRK, 0).Label("read brk")
	dumpable := b.Call(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE).Label("read dumpable")
	thp := b.Call(unix.SYS_PRCTL, unix.PR_GET_THP_DISABLE).Label("read THP_DISABLE")
	mdwe := b.Call(unix.SYS_PRCTL, unix.PR_GET_MDWE).Label("read MDWE").Ignore() // EINVAL before 6.3
	ksm := b.Call(unix.SYS_PRCTL, unix.PR_GET_MEMORY_MERGE).Label("read MEMORY_MERGE").Ignore()
	barrier := b.Call(unix.SYS_MEMBARRIER, membarrierGetRegistrations).Label("read the membarrier registrations").Ignore()
	probe := b.Alloc(8)
	q.then(func() error {
		mm.Brk, mm.Dumpable, mm.THPDisable = brk.Val(), uint32(dumpable.Val()), uint32(thp.Val())
		mm.MDWE, mm.KSM = uint32(mdwe.Val()), ksm.Val() != 0
		mm.Membarrier = uint32(barrier.Val())
		var err error
		mm.LockFuture, err = lockFuture(status.Tgid, probe.Addr())
		return err
	})
}

// membarrierGetRegistrations is MEMBARRIER_CMD_GET_REGISTRATIONS of linux/membarrier.h, since 6.3.
const membarrierGetRegistrations = 1 << 9

// lockFuture finds out whether mlockall(MCL_FUTURE) is in force, which nothing tells directly:
// then the scratch memory of the batch, which holds addr, came to be locked.
func lockFuture(pid int, addr uint64) (uint32, error) {
	st, err := readStatus(pid, 0)
	if err != nil || st.VmLck == 0 {
		return 0, err
	}
	b, err := quickread.File(taskPath(pid, 0, "smaps"))
	if err != nil {
		return 0, err
	}
	maps, err := procfs.ParseSmaps(b)
	if err != nil {
		return 0, err
	}
	for i := range maps {
		m := &maps[i]
		switch {
		case addr < m.Start || addr >= m.End:
		case !m.HasFlag("lo"):
			return 0, nil
		case m.HasFlag("lf"):
			return unix.MCL_FUTURE | unix.MCL_ONFAULT, nil
		default:
			return unix.MCL_FUTURE, nil
		}
	}
	return 0, fmt.Errorf("pid %d: no mapping at %#x, where our scratch memory was", pid, addr)
}

// WriteMM queues the fields of the address space, the exe link and its settings. exeFD is a
// descriptor, in the process, of the executable. All VMAs must stand and the executable the process
// had before must be unmapped (else EBUSY); mappings made afterwards are locked if
// mlockall(MCL_FUTURE) was.
func WriteMM(b *ptrace.Batch, mm *image.MM, exeFD int) {
	m := encodeMMMap(mm, b.Put(mm.Auxv).Addr(), exeFD)
	b.Call(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, b.Put(m).Addr(), mmMapSize).Label("set the fields of the address space")
	// The low bit is on or off, the others are flags (since 6.18 PR_THP_DISABLE_EXCEPT_ADVISED).
	b.Call(unix.SYS_PRCTL, unix.PR_SET_THP_DISABLE, uint64(mm.THPDisable&1), uint64(mm.THPDisable&^1)).Label("set THP_DISABLE")
	if mm.KSM {
		b.Call(unix.SYS_PRCTL, unix.PR_SET_MEMORY_MERGE, 1).Label("set MEMORY_MERGE")
	}
	for r := mm.Membarrier; r != 0; r &= r - 1 {
		b.Call(unix.SYS_MEMBARRIER, uint64(r&-r), 0, 0).Label(fmt.Sprintf("register for membarrier (%#x)", r&-r))
	}
	if mm.LockFuture != 0 {
		b.Call(unix.SYS_MLOCKALL, uint64(mm.LockFuture)).Label("mlockall for future mappings")
	}
}

// encodeMMMap encodes struct prctl_mm_map.
func encodeMMMap(mm *image.MM, auxv uint64, exeFD int) []byte {
	p := make([]byte, 0, mmMapSize)
	for _, v := range [...]uint64{mm.StartCode, mm.EndCode, mm.StartData, mm.EndData, mm.StartBrk, mm.Brk,
		mm.StartStack, mm.ArgStart, mm.ArgEnd, mm.EnvStart, mm.EnvEnd, auxv} {
		p = le.AppendUint64(p, v)
	}
	p = le.AppendUint32(p, uint32(len(mm.Auxv)))
	return le.AppendUint32(p, uint32(int32(exeFD)))
}

// writeDumpable queues the dumpable flag, which each change of credentials resets. The value 2
// cannot be set, it is what WriteCreds left behind if fs.suid_dumpable is 2 here too.
func writeDumpable(b *ptrace.Batch, mm *image.MM) {
	if mm.Dumpable == dumpDisable || mm.Dumpable == dumpUser {
		b.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, uint64(mm.Dumpable)).Label("set dumpable")
	}
}

// warnDumpable says when the dumpable flag cannot be 2 again.
func warnDumpable(pid int, mm *image.MM, warn func(string)) {
	if mm.Dumpable != dumpRoot {
		return
	}
	if b, err := quickread.File(suidDumpable); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(dumpRoot) {
		warn(fmt.Sprintf("pid %d: its core dumps were for root only (dumpable 2); here fs.suid_dumpable is not 2, so it dumps as that says", pid))
	}
}

// checkMM bounds what WriteMM is given.
func checkMM(pid int32, mm *image.MM) error {
	if len(mm.Auxv) > maxAuxv || len(mm.Auxv)%16 != 0 {
		return fmt.Errorf("pid %d: an auxiliary vector of %d bytes", pid, len(mm.Auxv))
	}
	if mm.LockFuture&^(unix.MCL_FUTURE|unix.MCL_ONFAULT) != 0 {
		return errors.New("lock_future holds unknown flags")
	}
	return nil
}
