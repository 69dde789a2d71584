// Threads blocked in system calls: they notice nothing. Only a sleep that went through a
// restore may end with EINTR and the rest of its time, since it cannot be told from one that
// was interrupted by a stop. Argument 4 is the length of the sleeps in seconds. With "killed" as
// argument 5 a call that ends with EINTR is made again: so may a call end whose checkpoint was
// killed between the stop and the repair of the call.
#include "prog.h"
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/select.h>

static int rd[2], po[2], se[2], ep, eppipe[2];
static uint32_t word;
static pid_t child, sig_tid;
static _Atomic int waiting, came_back;
static struct timespec asked;

static int patient;

// AGAIN makes a call anew when it was interrupted and the program is to bear that.
#define AGAIN(call)                                                                            \
	({                                                                                     \
		long r_;                                                                       \
		do                                                                             \
			r_ = (call);                                                           \
		while (r_ == -1 && errno == EINTR && patient);                                 \
		r_;                                                                            \
	})

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void in_read(void)
{
	char c;
	CHECK(AGAIN(read(rd[0], &c, 1)) == 1 && c == 'r', "read");
}

static void in_poll(void)
{
	struct pollfd p = {po[0], POLLIN, 0};
	CHECK(AGAIN(poll(&p, 1, 1000000)) == 1 && p.revents == POLLIN, "poll");
}

static void in_poll_forever(void)
{
	struct pollfd p = {po[0], POLLIN, 0};
	CHECK(AGAIN(poll(&p, 1, -1)) == 1 && p.revents == POLLIN, "poll without a timeout");
}

static void in_select(void)
{
	fd_set s;
	FD_ZERO(&s);
	FD_SET(se[0], &s);
	struct timeval tv = {100000, 0};
	CHECK(AGAIN(select(se[0] + 1, &s, NULL, NULL, &tv)) == 1, "select");
}

static void in_epoll(void)
{
	struct epoll_event e;
	CHECK(AGAIN(epoll_wait(ep, &e, 1, 1000000)) == 1 && e.data.u32 == 99, "epoll_wait");
}

static void in_epoll_forever(void)
{
	struct epoll_event e;
	CHECK(AGAIN(epoll_pwait(ep, &e, 1, -1, NULL)) == 1 && e.data.u32 == 99, "epoll_pwait");
}

static void in_futex(void)
{
	struct timespec t = {100000, 0};
	CHECK(AGAIN(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0)) == 0, "futex");
}

static void in_futex_forever(void) { CHECK(AGAIN(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0)) == 0, "futex"); }

static void in_futex_until(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += 100000;
	CHECK(AGAIN(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL, FUTEX_BITSET_MATCH_ANY)) == 0, "futex");
}

static void in_wait4(void)
{
	int st;
	CHECK(AGAIN(waitpid(child, &st, 0)) == child && WEXITSTATUS(st) == 5, "wait4: %#x", st);
}

static void in_sigwait(void)
{
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN);
	sig_tid = gettid();
	struct timespec t = {100000, 0};
	siginfo_t si;
	CHECK(AGAIN(sigtimedwait(&s, &si, &t)) == SIGRTMIN, "sigtimedwait");
}

// A sleep must last what was asked for, over any number of interruptions it is told of.
static void in_sleep(void)
{
	double from = now();
	struct timespec t = asked, rem;
	int r = nanosleep(&t, &rem);
	int e = r ? errno : 0;
	if (r != 0) {
		wait_go();
		CHECK(e == EINTR && (restored() || patient), "nanosleep: %s", strerror(e));
		CHECK(rem.tv_sec < asked.tv_sec + 1 && rem.tv_sec >= 0, "rest %ld", (long)rem.tv_sec);
		while (nanosleep(&rem, &rem) != 0)
			CHECK(errno == EINTR, "nanosleep, the rest");
	} else
		CHECK(now() - from >= asked.tv_sec, "nanosleep came back after %f s", now() - from);
}

static void in_sleep_no_rest(void)
{
	double from = now();
	struct timespec t = asked;
	if (nanosleep(&t, NULL) != 0) {
		int e = errno;
		wait_go();
		CHECK(e == EINTR && (restored() || patient), "nanosleep without rem: %s", strerror(e));
	} else
		CHECK(now() - from >= asked.tv_sec, "nanosleep without rem came back after %f s", now() - from);
}

static void *run(void *f)
{
	waiting++;
	((void (*)(void))f)();
	came_back++;
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	asked.tv_sec = argc > 4 ? atoi(argv[4]) : 2;
	patient = argc > 5 && strcmp(argv[5], "killed") == 0;
	MUST(pipe(rd));
	MUST(pipe(po));
	MUST(pipe(se));
	MUST(pipe(eppipe));
	ep = MUST(epoll_create1(0));
	struct epoll_event e = {EPOLLIN, {.u32 = 99}};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, eppipe[0], &e));
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN);
	pthread_sigmask(SIG_BLOCK, &s, NULL);
	int end[2];
	MUST(pipe(end));
	child = MUST(fork());
	if (child == 0) {
		char c;
		close(end[1]);
		CHECK(read(end[0], &c, 1) == 0, "child: read");
		_exit(5);
	}
	close(end[0]);
	static void (*const f[])(void) = {in_read, in_poll, in_poll_forever, in_select, in_epoll, in_epoll_forever,
					  in_futex, in_futex_forever, in_futex_until, in_wait4, in_sigwait,
					  in_sleep, in_sleep_no_rest};
	enum { N = sizeof f / sizeof *f };
	pthread_t t[N];
	for (int i = 0; i < N; i++)
		CHECK(pthread_create(&t[i], NULL, run, (void *)f[i]) == 0, "thread");
	while (waiting < N)
		nap(1);
	nap(100); // into their calls
	ready();
	while (!gone_ahead()) {
		CHECK(came_back <= 2, "%d of %d calls came back", came_back, N);
		nap(10);
	}
	MUST(write(rd[1], "r", 1));
	MUST(write(po[1], "p", 1));
	MUST(write(se[1], "s", 1));
	MUST(write(eppipe[1], "e", 1));
	for (int woken = 0; woken < 3;)
		woken += MUST(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 3 - woken, NULL, NULL, 0));
	close(end[1]);
	MUST(syscall(SYS_tgkill, getpid(), sig_tid, SIGRTMIN));
	for (int i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	pass();
}
