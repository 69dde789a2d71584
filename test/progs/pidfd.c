// Pidfds: of itself, of a child, of a thread, of a zombie, and of processes that were reaped.
#include "prog.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <linux/kcmp.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#define THREAD O_EXCL // PIDFD_THREAD

// struct pidfd_info of linux/pidfd.h, its first version, and how to ask for it.
struct info {
	uint64_t mask, cgroup;
	uint32_t pid, tgid, ppid, ids[8];
	int32_t exit_code;
};
#define GET_INFO _IOWR(0xFF, 11, struct info)
#define INFO_EXIT 8

static int pidfd(pid_t pid, unsigned flags) { return (int)MUST(syscall(SYS_pidfd_open, pid, flags)); }

// of is the pid that fdinfo shows.
static int of(int fd)
{
	char path[64], line[256];
	int pid = -2;
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(path, "re");
	while (fgets(line, sizeof line, f))
		sscanf(line, "Pid: %d", &pid);
	fclose(f);
	return pid;
}

static int ends(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};
	return MUST(poll(&p, 1, 0));
}

static int exit_code(int fd)
{
	struct info i = {.mask = INFO_EXIT};
	if (ioctl(fd, GET_INFO, &i) == -1 || !(i.mask & INFO_EXIT))
		return -1; // an older kernel
	return i.exit_code;
}

static pid_t start(int how)
{
	pid_t pid = MUST(fork());
	if (pid == 0) {
		if (how == -1)
			for (;;)
				pause();
		if (how < -1) {
			kill(getpid(), -how);
			pause();
		}
		_exit(how);
	}
	return pid;
}

static volatile pid_t tid;

static void *thread(void *arg)
{
	(void)arg;
	tid = gettid();
	for (;;)
		pause();
	return NULL;
}

static ino_t inode(int fd)
{
	struct stat st;
	MUST(fstat(fd, &st));
	return st.st_ino;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_t t;
	CHECK(pthread_create(&t, NULL, thread, NULL) == 0, "thread");
	while (tid == 0)
		nap(1);

	int self = pidfd(getpid(), O_NONBLOCK);
	int main_thread = pidfd(getpid(), THREAD);
	int other_thread = pidfd(tid, THREAD);

	pid_t gone = start(7), killed = start(-SIGKILL), zombie = start(9);
	siginfo_t si;
	int dead = pidfd(gone, 0), twin = pidfd(gone, O_NONBLOCK), shot = pidfd(killed, 0), late = pidfd(zombie, 0);
	MUST(waitpid(gone, NULL, 0));
	MUST(waitpid(killed, NULL, 0));
	MUST(waitid(P_PID, zombie, &si, WEXITED | WNOWAIT));
	int was_dead = exit_code(dead), was_shot = exit_code(shot);

	pid_t child = start(-1);
	int kid = pidfd(child, 0), kid_dup = MUST(dup3(kid, 100, O_CLOEXEC));
	int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event ev = {EPOLLIN, {.u64 = 42}};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, kid, &ev));

	ready();
	wait_go();

	CHECK(of(self) == getpid() && of(main_thread) == getpid() && of(other_thread) == tid, "%d %d %d", of(self), of(main_thread), of(other_thread));
	CHECK(fcntl(self, F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(other_thread, F_GETFL) == (O_RDWR | THREAD), "flags %#o %#o", fcntl(self, F_GETFL), fcntl(other_thread, F_GETFL));
	CHECK(fcntl(self, F_GETFD) == FD_CLOEXEC && fcntl(kid_dup, F_GETFD) == FD_CLOEXEC, "close-on-exec");
	MUST(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0));
	MUST(syscall(SYS_pidfd_send_signal, other_thread, 0, NULL, 0));
	CHECK(!ends(self) && !ends(other_thread) && !ends(kid), "somebody has ended");

	CHECK(of(dead) == -1 && of(twin) == -1 && of(shot) == -1, "%d %d %d", of(dead), of(twin), of(shot));
	CHECK(inode(dead) == inode(twin) && inode(dead) != inode(shot), "which are of one process");
	CHECK(fcntl(twin, F_GETFL) == (O_RDWR | O_NONBLOCK), "flags %#o", fcntl(twin, F_GETFL));
	CHECK(exit_code(dead) == was_dead && exit_code(shot) == was_shot, "exit codes %#x %#x, were %#x %#x", exit_code(dead), exit_code(shot), was_dead, was_shot);
	CHECK(ends(dead) && ends(shot), "the dead do not poll");
	CHECK(syscall(SYS_pidfd_send_signal, dead, 0, NULL, 0) == -1 && errno == ESRCH, "a signal to the dead");

	CHECK(of(late) == zombie && ends(late), "the zombie is %d", of(late));
	MUST(waitid(P_PIDFD, late, &si, WEXITED));
	CHECK(si.si_pid == zombie && si.si_status == 9, "the zombie is %d with %d", si.si_pid, si.si_status);

	CHECK(of(kid) == child && epoll_wait(ep, &ev, 1, 0) == 0, "the child is %d", of(kid));
	CHECK(syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, kid, kid_dup) == 0, "dup");
	MUST(syscall(SYS_pidfd_send_signal, kid_dup, SIGKILL, NULL, 0));
	CHECK(epoll_wait(ep, &ev, 1, 5000) == 1 && ev.data.u64 == 42, "the end of the child is not told");
	MUST(waitid(P_PIDFD, kid, &si, WEXITED));
	CHECK(si.si_pid == child && si.si_status == SIGKILL, "the child is %d with %d", si.si_pid, si.si_status);
	pass();
}
