// SEM_UNDO: what the kernel takes back when a process ends. One of them has threads, and one of those has called semop.
#include "prog.h"
#include <pthread.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>

union semun {
	int val;
};

static int set;

static void op(int num, int by, int flags) { MUST(semop(set, &(struct sembuf){num, by, flags}, 1)); }

static void *take(void *arg)
{
	op(0, -2, SEM_UNDO);
	op(2, 7, SEM_UNDO);
	*(_Atomic int *)arg = 1;
	for (;;)
		nap(100);
	return NULL;
}

static void expect(int a, int b, int c, const char *when)
{
	int is[3];
	for (int i = 0; i < 3; i++)
		is[i] = MUST(semctl(set, i, GETVAL));
	CHECK(is[0] == a && is[1] == b && is[2] == c, "%s: %d %d %d, should be %d %d %d", when, is[0], is[1], is[2], a, b, c);
}

static void finish(pid_t pid)
{
	MUST(kill(pid, SIGTERM));
	CHECK(waitpid(pid, NULL, 0) == pid, "wait for %d", pid);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	set = MUST(semget(0x5d000000 | getpid() << 4, 3, IPC_CREAT | IPC_EXCL | 0600));
	MUST(semctl(set, 0, SETVAL, (union semun){.val = 10}));
	MUST(semctl(set, 1, SETVAL, (union semun){.val = 32767}));
	_Atomic int *up = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t plain = MUST(fork());
	if (plain == 0) {
		op(0, 5, SEM_UNDO);
		op(1, -32767, SEM_UNDO);
		op(1, 1, 0);
		up[0] = 1;
		for (;;)
			nap(100);
	}
	while (!up[0])
		nap(1);
	pid_t threaded = MUST(fork());
	if (threaded == 0) {
		pthread_t t;
		CHECK(pthread_create(&t, NULL, take, (void *)&up[1]) == 0, "pthread_create");
		for (;;)
			nap(100);
	}
	while (!up[1])
		nap(1);
	op(2, 1, 0);
	expect(13, 1, 8, "at first");
	ready();
	wait_go();
	expect(13, 1, 8, "after wait_go");
	CHECK(semctl(set, 0, GETPID) == threaded && semctl(set, 1, GETPID) == plain && semctl(set, 2, GETPID) == getpid(), "used last by %d %d %d",
	      semctl(set, 0, GETPID), semctl(set, 1, GETPID), semctl(set, 2, GETPID));
	finish(plain);
	expect(8, 32767, 8, "without the plain one"); // no more than SEMVMX
	finish(threaded);
	expect(10, 32767, 1, "without the one with threads");
	MUST(semctl(set, 0, IPC_RMID));
	pass();
}
