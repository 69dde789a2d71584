// Who gets the SIGIO of a file: a process, a thread, a group, one that has ended, and who is named by
// somebody with other user ids. With a pid as argument 4 that process outside the tree; the file
// "owner" then says who is to be the owner in the end.
#include "prog.h"

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

static int made(void)
{
	int p[2];
	MUST(pipe(p));
	close(p[1]);
	return p[0];
}

static int owned(int type, pid_t pid, int sig)
{
	int fd = made();
	struct f_owner_ex ex = {type, pid};
	MUST(fcntl(fd, F_SETOWN_EX, &ex));
	MUST(fcntl(fd, F_SETSIG, sig));
	return fd;
}

static void is(int fd, int type, pid_t pid, int sig, uid_t uid, uid_t euid)
{
	struct f_owner_ex ex = {-1, -1};
	uid_t ids[2] = {77, 77};
	MUST(fcntl(fd, F_GETOWN_EX, &ex));
	MUST(fcntl(fd, F_GETOWNER_UIDS, ids));
	CHECK(ex.pid == pid && (pid == 0 || ex.type == type), "owner of fd %d: type %d pid %d, not %d %d", fd, ex.type, ex.pid, type, pid);
	CHECK(fcntl(fd, F_GETSIG) == sig, "signal of fd %d: %d", fd, fcntl(fd, F_GETSIG));
	CHECK(pid == 0 || (ids[0] == uid && ids[1] == euid), "set by %d %d, not %d %d", ids[0], ids[1], uid, euid);
}

static _Atomic pid_t tid;
static void *napper(void *arg)
{
	tid = gettid();
	for (;;)
		nap(1000);
	return arg;
}

static void outside(pid_t pid)
{
	int fd = owned(F_OWNER_PID, pid, SIGUSR2);
	ready();
	wait_go();
	FILE *f = fopen("owner", "r");
	int want;
	CHECK(f && fscanf(f, "%d", &want) == 1, "the file owner");
	is(fd, F_OWNER_PID, want, SIGUSR2, getuid(), geteuid());
	pass();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 4)
		outside(atoi(argv[4]));
	pthread_t t;
	CHECK(pthread_create(&t, NULL, napper, NULL) == 0, "thread");
	while (!tid)
		nap(1);
	pid_t child = MUST(fork());
	if (child == 0)
		napper(NULL);
	pid_t dead = MUST(fork());
	if (dead == 0)
		napper(NULL);
	int self = owned(F_OWNER_PID, getpid(), 0), other = owned(F_OWNER_PID, child, SIGRTMIN);
	int thread = owned(F_OWNER_TID, tid, SIGRTMIN + 1), group = owned(F_OWNER_PGRP, getpgrp(), SIGUSR1);
	int ended = owned(F_OWNER_PID, dead, SIGRTMIN + 2);
	MUST(kill(dead, SIGKILL));
	MUST(waitpid(dead, NULL, 0));
	MUST(setresuid(-1, 1234, -1));
	int before = owned(F_OWNER_PID, getpid(), SIGRTMIN + 3);
	MUST(setresuid(-1, 0, -1));
	ready();
	wait_go();
	is(self, F_OWNER_PID, getpid(), 0, 0, 0);
	is(other, F_OWNER_PID, child, SIGRTMIN, 0, 0);
	is(thread, F_OWNER_TID, tid, SIGRTMIN + 1, 0, 0);
	is(group, F_OWNER_PGRP, getpgrp(), SIGUSR1, 0, 0);
	is(ended, F_OWNER_PID, 0, SIGRTMIN + 2, 0, 0);
	is(before, F_OWNER_PID, getpid(), SIGRTMIN + 3, 0, 1234);
	MUST(kill(child, SIGKILL));
	MUST(waitpid(child, NULL, 0));
	pass();
}
