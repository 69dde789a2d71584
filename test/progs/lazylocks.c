// Locks that lie in memory which comes late after a lazy restore: a thread waits for a mutex with
// priority inheritance, which the kernel locks for it, and a process holds robust mutexes in shared memory whose list
// begins in such memory when it is killed.
#include "prog.h"

#define SIZE (4UL << 20)

struct locks {
	pthread_mutex_t pi;
	char apart[8192];
	pthread_mutex_t *first;
};

static struct locks *locks;
static int got = -1;

static void *waits(void *arg)
{
	(void)arg;
	got = pthread_mutex_lock(&locks->pi);
	return NULL;
}

static void *holds(void *arg)
{
	CHECK(pthread_mutex_lock(arg) == 0, "pthread_mutex_lock");
	ready();
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_mutexattr_t pi, robust;
	pthread_mutexattr_init(&pi);
	pthread_mutexattr_setprotocol(&pi, PTHREAD_PRIO_INHERIT);
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);

	char *big = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(big != MAP_FAILED, "mmap");
	fill(big, SIZE, 1);
	locks = (struct locks *)(big + SIZE / 4);
	CHECK(pthread_mutex_init(&locks->pi, &pi) == 0, "pthread_mutex_init");
	CHECK(pthread_mutex_lock(&locks->pi) == 0, "pthread_mutex_lock");
	pthread_t t;
	CHECK(pthread_create(&t, NULL, waits, NULL) == 0, "pthread_create");

	pthread_mutex_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED, "mmap");
	CHECK(pthread_mutex_init(shared, &robust) == 0, "pthread_mutex_init");
	nap(50); // the thread waits by now
	pid_t child = MUST(fork());
	if (child == 0) { // its thread has its stack, and the list of its mutexes, in the middle of large memory
		char *stack = big + SIZE / 2;
		pthread_attr_t a;
		pthread_attr_init(&a);
		CHECK(pthread_attr_setstack(&a, stack, 1 << 20) == 0, "pthread_attr_setstack");
		CHECK(pthread_create(&t, &a, holds, shared) == 0, "pthread_create");
		for (;;)
			pause();
	}
	wait_go();
	MUST(kill(child, SIGKILL));
	int r = pthread_mutex_lock(shared);
	CHECK(r == EOWNERDEAD, "the mutex of a killed process: %s", strerror(r));
	CHECK(pthread_mutex_unlock(&locks->pi) == 0, "pthread_mutex_unlock");
	CHECK(pthread_join(t, NULL) == 0, "pthread_join");
	CHECK(got == 0, "the mutex that was waited for: %s", strerror(got));
	pass();
}
