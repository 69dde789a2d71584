// Signals: masks, alternate stacks, actions, and queued signals with their siginfo, pending
// for one thread and for the whole process; interval timers.
#include "prog.h"
#include <stdatomic.h>
#include <sys/time.h>

static volatile sig_atomic_t on_alt, prof, seen_mask;
static char alt_main[65536], alt_thread[65536];
static _Atomic int thread_ready, thread_go;
static pid_t thread_tid;

static void handler(int sig, siginfo_t *si, void *uc)
{
	(void)si, (void)uc;
	char here;
	if (sig == SIGUSR2) {
		on_alt = &here >= alt_main && &here < alt_main + sizeof alt_main;
		sigset_t m;
		sigprocmask(SIG_BLOCK, NULL, &m);
		seen_mask = sigismember(&m, SIGHUP) && !sigismember(&m, SIGTERM);
	}
	if (sig == SIGPROF)
		prof = 1;
}

static void queue(int tid, int sig, int value)
{
	siginfo_t si = {.si_signo = sig, .si_code = SI_QUEUE};
	si.si_pid = 4242;
	si.si_uid = 77;
	si.si_value.sival_int = value;
	if (tid)
		MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, sig, &si));
	else
		MUST(syscall(SYS_rt_sigqueueinfo, getpid(), sig, &si));
}

static void expect(sigset_t *set, int sig, int value, const char *who)
{
	siginfo_t si;
	struct timespec zero = {0, 0};
	int got = sigtimedwait(set, &si, &zero);
	CHECK(got == sig, "%s: signal %d, not %d", who, got, sig);
	if (value >= 0)
		CHECK(si.si_code == SI_QUEUE && si.si_value.sival_int == value && si.si_pid == 4242 && si.si_uid == 77,
		      "%s: siginfo code %d value %d pid %d uid %d", who, si.si_code, si.si_value.sival_int, si.si_pid,
		      (int)si.si_uid);
}

static void masks(sigset_t *own)
{
	sigemptyset(own);
	sigaddset(own, SIGRTMIN + 3);
	sigaddset(own, SIGUSR1);
}

static void *thread(void *arg)
{
	(void)arg;
	stack_t ss = {.ss_sp = alt_thread, .ss_size = sizeof alt_thread}, now;
	MUST(sigaltstack(&ss, NULL));
	sigset_t own, set, all;
	masks(&own);
	sigfillset(&all);
	sigdelset(&all, SIGQUIT);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	thread_tid = gettid();
	thread_ready = 1;
	while (!thread_go)
		nap(5);
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	CHECK(!sigismember(&set, SIGQUIT) && sigismember(&set, SIGTERM), "mask of the thread");
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == alt_thread && now.ss_size == sizeof alt_thread && now.ss_flags == 0,
	      "alternate stack of the thread %p %zu %#x", now.ss_sp, now.ss_size, now.ss_flags);
	expect(&own, SIGUSR1, 31, "own USR1");
	for (int i = 0; i < 3; i++)
		expect(&own, SIGRTMIN + 3, 100 + i, "own realtime");
	struct timespec zero = {0, 0};
	CHECK(sigtimedwait(&own, NULL, &zero) == -1 && errno == EAGAIN, "own signals: one too many");
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART}, old;
	sigaddset(&sa.sa_mask, SIGHUP);
	MUST(sigaction(SIGUSR2, &sa, NULL));
	struct sigaction once = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NODEFER};
	MUST(sigaction(SIGTERM, &once, NULL));
	MUST(sigaction(SIGPROF, &once, NULL));
	signal(SIGPIPE, SIG_IGN);
	stack_t ss = {.ss_sp = alt_main, .ss_size = sizeof alt_main}, now;
	MUST(sigaltstack(&ss, NULL));

	pthread_t t;
	CHECK(pthread_create(&t, NULL, thread, NULL) == 0, "thread");
	while (!thread_ready)
		nap(1);

	sigset_t shared, cur;
	sigemptyset(&shared);
	sigaddset(&shared, SIGRTMIN + 1);
	sigaddset(&shared, SIGRTMIN + 2);
	sigaddset(&shared, SIGINT);
	sigaddset(&shared, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &shared, NULL);
	for (int i = 0; i < 5; i++)
		queue(0, SIGRTMIN + 2, 200 + i);
	queue(0, SIGRTMIN + 1, 300);
	queue(0, SIGINT, 17);
	queue(thread_tid, SIGUSR1, 31);
	for (int i = 0; i < 3; i++)
		queue(thread_tid, SIGRTMIN + 3, 100 + i);
	struct itimerval real = {{1000, 250000}, {5000, 0}}, virt = {{0, 0}, {3600, 0}}, iv;
	MUST(setitimer(ITIMER_REAL, &real, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &virt, NULL));

	ready();
	wait_go();

	thread_go = 1;
	pthread_join(t, NULL);
	pthread_sigmask(SIG_BLOCK, NULL, &cur);
	CHECK(sigismember(&cur, SIGINT) && !sigismember(&cur, SIGUSR2), "mask of the main thread");
	sigset_t one = shared;
	expect(&one, SIGINT, 17, "shared INT");
	expect(&one, SIGRTMIN + 1, 300, "shared realtime 1");
	for (int i = 0; i < 5; i++)
		expect(&one, SIGRTMIN + 2, 200 + i, "shared realtime 2");
	struct timespec zero = {0, 0};
	CHECK(sigtimedwait(&shared, NULL, &zero) == -1 && errno == EAGAIN, "shared signals: one too many");

	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == alt_main && now.ss_size == sizeof alt_main, "alternate stack %p %zu", now.ss_sp, now.ss_size);
	raise(SIGUSR2);
	CHECK(on_alt, "the handler did not run on the alternate stack");
	CHECK(seen_mask, "the handler did not run with its mask");
	MUST(sigaction(SIGUSR2, NULL, &old));
	CHECK(old.sa_sigaction == handler && (old.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_RESTART)) ==
	      (SA_SIGINFO | SA_ONSTACK | SA_RESTART) && sigismember(&old.sa_mask, SIGHUP), "action of USR2");
	MUST(sigaction(SIGTERM, NULL, &old));
	CHECK(old.sa_sigaction == handler && (old.sa_flags & SA_RESETHAND) && (old.sa_flags & SA_NODEFER), "action of TERM");
	MUST(sigaction(SIGPIPE, NULL, &old));
	CHECK(old.sa_handler == SIG_IGN, "PIPE is not ignored");
	MUST(sigaction(SIGCHLD, NULL, &old));
	CHECK(old.sa_handler == SIG_DFL, "CHLD is not default");

	MUST(getitimer(ITIMER_REAL, &iv));
	CHECK(iv.it_interval.tv_sec == 1000 && iv.it_interval.tv_usec / 10000 == 25, "interval of the real timer %ld.%06ld",
	      (long)iv.it_interval.tv_sec, (long)iv.it_interval.tv_usec);
	CHECK(iv.it_value.tv_sec > 0 && iv.it_value.tv_sec <= 5000, "real timer %ld", (long)iv.it_value.tv_sec);
	MUST(getitimer(ITIMER_VIRTUAL, &iv));
	CHECK(iv.it_value.tv_sec > 0 && iv.it_value.tv_sec <= 3601, "virtual timer %ld", (long)iv.it_value.tv_sec);
	// A profiling timer set now still works.
	struct itimerval p = {{0, 0}, {0, 1000}};
	MUST(setitimer(ITIMER_PROF, &p, NULL));
	while (!prof)
		;
	pass();
}
