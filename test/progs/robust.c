// What the kernel keeps about a thread for the C library: the robust list (the lock of a dead
// thread is handed on), clear_child_tid (a join ends) and rseq (the current CPU is written).
#include "prog.h"
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/rseq.h>

static pthread_mutex_t lock;
static _Atomic int held, die;

static unsigned rseq_cpu(void)
{
	struct rseq *r = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	return *(volatile unsigned *)&r->cpu_id;
}

static void rseq_check(const char *who)
{
	if (__rseq_size == 0)
		return;
	unsigned cpu = rseq_cpu();
	CHECK(cpu < 4096, "%s: rseq is not registered: cpu_id %u", who, cpu);
	// A stale area keeps its number for ever; a live one follows the thread.
	cpu_set_t was, one;
	MUST(sched_getaffinity(0, sizeof was, &was));
	for (int i = 0; i < CPU_SETSIZE; i++) {
		if (!CPU_ISSET(i, &was))
			continue;
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		MUST(sched_setaffinity(0, sizeof one, &one));
		CHECK(rseq_cpu() == (unsigned)i, "%s: rseq says cpu %u on cpu %d", who, rseq_cpu(), i);
	}
	MUST(sched_setaffinity(0, sizeof was, &was));
}

static void *holder(void *arg)
{
	(void)arg;
	rseq_check("thread, before");
	CHECK(pthread_mutex_lock(&lock) == 0, "lock");
	held = 1;
	while (!die)
		nap(1);
	rseq_check("thread, after");
	return (void *)7; // dies with the lock
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&lock, &a);
	pthread_t t;
	CHECK(pthread_create(&t, NULL, holder, NULL) == 0, "thread");
	while (!held)
		nap(1);
	rseq_check("main, before");
	ready();
	wait_go();

	rseq_check("main, after");
	CHECK(pthread_mutex_trylock(&lock) == EBUSY, "the lock is free");
	die = 1;
	void *r;
	CHECK(pthread_join(t, &r) == 0 && r == (void *)7, "join");
	CHECK(pthread_mutex_lock(&lock) == EOWNERDEAD, "the lock of a dead thread was not handed on");
	CHECK(pthread_mutex_consistent(&lock) == 0 && pthread_mutex_unlock(&lock) == 0, "consistent");
	pass();
}
