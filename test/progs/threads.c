// Threads that hand a baton round with mutexes and condition variables, all the time. Each
// knows its tid, has its own thread-local value, its own stack guard and its own name.
#include "prog.h"
#include <stdatomic.h>

#define MAX 512

static int n;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond[MAX];
static int turn;
static unsigned long laps, sum;
static _Atomic int stop;
static __thread uint64_t local;
static pid_t tids[MAX];

static void *runner(void *arg)
{
	int me = (int)(intptr_t)arg;
	char name[16], now[16];
	snprintf(name, sizeof name, "runner %d", me);
	pthread_setname_np(pthread_self(), name);
	local = mix(me);
	tids[me] = gettid();
	pthread_mutex_lock(&lock);
	for (;;) {
		while (turn != me)
			pthread_cond_wait(&cond[me], &lock);
		CHECK(local == mix(me), "thread %d: thread-local value", me);
		CHECK(tids[me] == gettid(), "thread %d: tid %d was %d", me, gettid(), tids[me]);
		sum += me;
		turn = (me + 1) % n;
		if (turn == 0)
			laps++;
		pthread_cond_signal(&cond[turn]);
		if (stop && turn == 0)
			stop = 2;
		if (stop == 2)
			break;
	}
	for (int i = 0; i < n; i++)
		pthread_cond_signal(&cond[i]);
	turn = (me + 1) % n;
	pthread_mutex_unlock(&lock);
	pthread_getname_np(pthread_self(), now, sizeof now);
	CHECK(strcmp(name, now) == 0, "thread %d is named %s", me, now);
	return (void *)(intptr_t)(me + 1);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	n = argc > 4 ? atoi(argv[4]) : 16;
	CHECK(n > 1 && n <= MAX, "%d threads", n);
	pthread_t t[MAX];
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	for (int i = 0; i < n; i++)
		pthread_cond_init(&cond[i], NULL);
	for (int i = 0; i < n; i++)
		CHECK(pthread_create(&t[i], &attr, runner, (void *)(intptr_t)i) == 0, "thread %d", i);
	while (*(volatile unsigned long *)&laps < 10)
		nap(1);
	ready();
	wait_go();

	pthread_mutex_lock(&lock);
	unsigned long before = laps;
	pthread_mutex_unlock(&lock);
	for (;;) { // it goes on
		pthread_mutex_lock(&lock);
		unsigned long now = laps;
		pthread_mutex_unlock(&lock);
		if (now > before + 10)
			break;
		nap(1);
	}
	pthread_mutex_lock(&lock);
	stop = 1;
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < n; i++) {
		void *r;
		CHECK(pthread_join(t[i], &r) == 0 && (intptr_t)r == i + 1, "join %d gave %p", i, r);
	}
	unsigned long want = laps * ((unsigned long)n * (n - 1) / 2), more = 0;
	for (int i = 0; i < n; i++) // the last lap is told from a full one by its remainder
		more += i;
	CHECK(sum >= want && sum <= want + more, "sum %lu after %lu laps", sum, laps);
	pass();
}
