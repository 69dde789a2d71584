// POSIX timers: their ids, what they send, their intervals; one that runs all the time.
#include "prog.h"

static volatile sig_atomic_t ticks, wrong;

static void tick(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)uc;
	ticks++;
	if (si->si_code != SI_TIMER || si->si_value.sival_int != 4711)
		wrong++;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct sigaction sa = {.sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_RESTART};
	MUST(sigaction(SIGRTMIN + 1, &sa, NULL));
	sigset_t block;
	sigemptyset(&block);
	sigaddset(&block, SIGRTMIN + 2);
	MUST(sigprocmask(SIG_BLOCK, &block, NULL));

	// The raw calls: glibc hides the kernel's ids.
	int gap, running, far, disarmed, thread;
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1};
	ev.sigev_value.sival_int = 4711;
	MUST(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &gap));
	MUST(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &running));
	MUST(syscall(SYS_timer_delete, gap));
	ev.sigev_signo = SIGRTMIN + 2;
	MUST(syscall(SYS_timer_create, CLOCK_REALTIME, &ev, &far));
	MUST(syscall(SYS_timer_create, CLOCK_BOOTTIME, &ev, &disarmed));
	struct sigevent te = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2};
	te._sigev_un._tid = gettid();
	MUST(syscall(SYS_timer_create, CLOCK_MONOTONIC, &te, &thread));

	struct itimerspec it = {{0, 5000000}, {0, 5000000}}, now;
	MUST(syscall(SYS_timer_settime, running, 0, &it, NULL));
	it = (struct itimerspec){{7, 8}, {4000, 0}};
	MUST(syscall(SYS_timer_settime, far, 0, &it, NULL));
	it = (struct itimerspec){{0, 0}, {9000, 0}};
	MUST(syscall(SYS_timer_settime, thread, 0, &it, NULL));
	while (ticks < 3)
		nap(1);
	ready();
	wait_go();

	int before = ticks;
	while (ticks < before + 3)
		nap(1);
	CHECK(wrong == 0, "%d wrong siginfos", wrong);
	MUST(syscall(SYS_timer_gettime, far, &now));
	CHECK(now.it_interval.tv_sec == 7 && now.it_interval.tv_nsec == 8, "interval %ld.%09ld",
	      (long)now.it_interval.tv_sec, now.it_interval.tv_nsec);
	CHECK(now.it_value.tv_sec > 0 && now.it_value.tv_sec <= 4000, "remaining %ld", (long)now.it_value.tv_sec);
	MUST(syscall(SYS_timer_gettime, thread, &now));
	CHECK(now.it_interval.tv_sec == 0 && now.it_value.tv_sec > 0 && now.it_value.tv_sec <= 9000, "one shot %ld",
	      (long)now.it_value.tv_sec);
	MUST(syscall(SYS_timer_gettime, disarmed, &now));
	CHECK(now.it_value.tv_sec == 0 && now.it_value.tv_nsec == 0, "the disarmed timer runs");
	CHECK(syscall(SYS_timer_gettime, gap, &now) == -1 && errno == EINVAL, "a deleted timer is back");
	int next;
	MUST(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, &next));
	CHECK(next != running && next != far && next != disarmed && next != thread, "id %d was given twice", next);

	it = (struct itimerspec){{0, 0}, {0, 1}};
	MUST(syscall(SYS_timer_settime, thread, 0, &it, NULL));
	siginfo_t si;
	CHECK(sigwaitinfo(&block, &si) == SIGRTMIN + 2 && si.si_code == SI_TIMER, "the timer of a thread: code %d", si.si_code);
	pass();
}
