package restore

import (
	"fmt"
	"syscall"
)

// mfdExec is MFD_EXEC of linux/memfd.h: the memfd may be executed whatever vm.memfd_noexec says, short of 2.
const mfdExec = 0x10

// forkStub executes path with channel as its descriptor 0. It is called on the tracing thread: until the
// stub is seized, with PTRACE_O_EXITKILL, the end of that thread is the end of the stub.
func forkStub(path string, channel int) (int, error) {
	pid, err := syscall.ForkExec(path, []string{"ckptfs-restore"}, &syscall.ProcAttr{
		Files: []uintptr{uintptr(channel)}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}})
	if err != nil {
		return 0, fmt.Errorf("start the restore stub: %w; restore needs to execute a memfd, so vm.memfd_noexec must not be 2", err)
	}
	return pid, nil
}
