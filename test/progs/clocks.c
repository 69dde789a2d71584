// timerfds of every sort, one shared with a child, and signalfds, in an epoll set: what was left of
// a timer is left after a restore, or less if the program ran, never the whole anew; expirations
// that were not read are there.
#include "prog.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#define LONG 100000L

static int timer(int clock, int flags, long sec, long nsec, long interval)
{
	int fd = MUST(timerfd_create(clock, TFD_NONBLOCK));
	struct itimerspec t = {{interval, 0}, {sec, nsec}};
	if (flags & TFD_TIMER_ABSTIME) {
		struct timespec now;
		MUST(clock_gettime(clock, &now));
		t.it_value.tv_sec += now.tv_sec;
	}
	MUST(timerfd_settime(fd, flags, &t, NULL));
	return fd;
}

static void left(int fd, const char *what, long interval)
{
	struct itimerspec t;
	MUST(timerfd_gettime(fd, &t));
	CHECK(t.it_interval.tv_sec == interval && t.it_value.tv_sec <= LONG && t.it_value.tv_sec > LONG - 3600,
	      "%s: %ld s left, every %ld s", what, (long)t.it_value.tv_sec, (long)t.it_interval.tv_sec);
}

static uint64_t ticks(int fd)
{
	uint64_t n = 0;
	return read(fd, &n, sizeof n) == sizeof n ? n : 0;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int mono = timer(CLOCK_MONOTONIC, 0, LONG, 0, 0), boot = timer(CLOCK_BOOTTIME, 0, LONG, 0, 7);
	int real = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, LONG, 0, 9);
	int abs = timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, LONG, 0, 0), off = timer(CLOCK_MONOTONIC, 0, 0, 0, 0);
	int once = timer(CLOCK_MONOTONIC, 0, 0, 1, 0), many = timer(CLOCK_MONOTONIC, 0, 0, 1, LONG), soon = timer(CLOCK_MONOTONIC, 0, 0, 20000000, 0);
	struct itimerspec fast = {{0, 5000000}, {0, 5000000}};
	int beat = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
	MUST(timerfd_settime(beat, 0, &fast, NULL));

	sigset_t set, sets;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 3);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	int sig = MUST(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC)), ep = MUST(epoll_create1(0));
	sigemptyset(&sets);
	int none = MUST(signalfd(-1, &sets, SFD_NONBLOCK));
	struct epoll_event e = {EPOLLIN, {.fd = sig}};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, sig, &e));
	MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 4711}));
	pid_t child = MUST(fork());
	if (child == 0) { // shares them all
		wait_go();
		left(mono, "in the child", 0);
		_exit(0);
	}
	nap(50); // what expires at once has
	ready();
	wait_go();

	left(mono, "monotonic", 0);
	left(boot, "boot time", 7);
	left(real, "wall-clock time", 9);
	left(abs, "absolute", 0);
	struct itimerspec t;
	MUST(timerfd_gettime(off, &t));
	CHECK(t.it_value.tv_sec == 0 && t.it_value.tv_nsec == 0 && ticks(off) == 0, "a timer that was off");
	CHECK(ticks(once) == 1 && ticks(once) == 0, "an expiration that was not read");
	left(many, "periodic", LONG);
	CHECK(ticks(many) == 1, "an expiration of a periodic timer");
	CHECK(ticks(soon) == 1, "a timer that expired long ago");
	CHECK(ticks(beat) > 0, "a beat");
	CHECK(ticks(beat) > 0, "the beat goes on"); // it waits
	struct epoll_event got;
	CHECK(epoll_wait(ep, &got, 1, 0) == 1 && got.data.fd == sig, "the signalfd is not ready");
	struct signalfd_siginfo si;
	CHECK(read(sig, &si, sizeof si) == sizeof si && si.ssi_signo == (unsigned)SIGRTMIN + 3 && si.ssi_int == 4711, "signal %u", si.ssi_signo);
	MUST(kill(getpid(), SIGUSR1));
	CHECK(read(sig, &si, sizeof si) == sizeof si && si.ssi_signo == SIGUSR1, "signal %u", si.ssi_signo);
	CHECK(read(sig, &si, sizeof si) == -1 && errno == EAGAIN, "a signal too much: %u", si.ssi_signo);
	CHECK(read(none, &si, sizeof si) == -1 && errno == EAGAIN, "a signal of an empty set");
	int st;
	MUST(waitpid(child, &st, 0));
	CHECK(st == 0, "child: %#x", st);
	pass();
}
