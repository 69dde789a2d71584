// A process with a chosen piece of state: each argument sets one. It prints "ready" when all
// are set, and sleeps.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) check((long)(x), #x)

static void check(long r, const char *what) {
	if (r < 0) {
		perror(what);
		exit(1);
	}
}

static void on_signal(int sig) { (void)sig; }

static void signals(void) {
	struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};
	sigaddset(&a.sa_mask, SIGINT);
	sigaddset(&a.sa_mask, SIGRTMIN + 3);
	CHECK(sigaction(SIGUSR1, &a, 0));
	a.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESETHAND;
	CHECK(sigaction(SIGRTMAX, &a, 0));
	struct sigaction ign = {.sa_handler = SIG_IGN}, dfl = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
	CHECK(sigaction(SIGHUP, &ign, 0));
	CHECK(sigaction(SIGCHLD, &dfl, 0));
	stack_t st = {.ss_sp = malloc(65536), .ss_size = 65536};
	CHECK(sigaltstack(&st, 0));
}

static void pending(void) {
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, 0);
	for (int i = 0; i < 3; i++) {
		union sigval v = {.sival_int = 100 + i};
		CHECK(sigqueue(getpid(), SIGRTMIN + 2 - i, v));
		CHECK(sigqueue(getpid(), SIGRTMIN, v));
	}
	CHECK(kill(getpid(), SIGUSR1));
	CHECK(kill(getpid(), SIGURG));
	siginfo_t si = {.si_code = SI_QUEUE};
	si.si_value.sival_int = 7;
	CHECK(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGRTMIN + 5, &si));
	CHECK(syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
}

// bare: a signal that is pending without a queue entry.
static void bare(void) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR2);
	sigprocmask(SIG_BLOCK, &s, 0);
	struct rlimit l = {0, 0};
	CHECK(setrlimit(RLIMIT_SIGPENDING, &l));
	CHECK(setresuid(54321, 54321, 54321));
	CHECK(syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
}

static timer_t ids[6];

static void timers(void) {
	struct itimerval r = {{5, 250000}, {1000, 0}}, v = {{0, 0}, {2000, 0}}, p = {{3, 0}, {3000, 0}};
	CHECK(setitimer(ITIMER_REAL, &r, 0));
	CHECK(setitimer(ITIMER_VIRTUAL, &v, 0));
	CHECK(setitimer(ITIMER_PROF, &p, 0));
	struct sigevent sig = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value = {.sival_ptr = (void *)0x123456789abc}};
	struct sigevent none = {.sigev_notify = SIGEV_NONE}, tid = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2};
	tid._sigev_un._tid = syscall(SYS_gettid);
	struct itimerspec far = {{7, 9}, {4000, 0}}, once = {{0, 0}, {5000, 0}};
	CHECK(timer_create(CLOCK_REALTIME, &sig, &ids[0]));
	CHECK(timer_create(CLOCK_MONOTONIC, &none, &ids[1]));
	CHECK(timer_create(CLOCK_MONOTONIC, &none, &ids[2]));
	CHECK(timer_create(CLOCK_BOOTTIME, &tid, &ids[3]));
	CHECK(timer_create(CLOCK_PROCESS_CPUTIME_ID, &sig, &ids[4]));
	CHECK(timer_create(CLOCK_MONOTONIC, 0, &ids[5]));
	CHECK(timer_delete(ids[1]));
	CHECK(timer_settime(ids[0], 0, &far, 0));
	CHECK(timer_settime(ids[2], 0, &once, 0));
	CHECK(timer_settime(ids[3], 0, &far, 0));
	CHECK(timer_settime(ids[4], 0, &once, 0));
}

// fired: a periodic ITIMER_REAL and a one-shot timer, both fired, with their signals blocked.
static void fired(void) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGALRM);
	sigaddset(&s, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &s, 0);
	struct itimerval r = {{50, 0}, {0, 1000}};
	CHECK(setitimer(ITIMER_REAL, &r, 0));
	struct sigevent sig = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
	struct itimerspec once = {{0, 0}, {0, 1000000}};
	CHECK(timer_create(CLOCK_MONOTONIC, &sig, &ids[0]));
	CHECK(timer_settime(ids[0], 0, &once, 0));
	usleep(20000);
}

static void creds(int ambient) {
	gid_t groups[] = {7, 77, 1234, 70000};
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];
	CHECK(syscall(SYS_capget, &h, d));
	d[0].inheritable = 1 << CAP_NET_RAW | 1 << CAP_KILL | 1 << CAP_CHOWN;
	CHECK(syscall(SYS_capset, &h, d));
	CHECK(prctl(PR_SET_SECUREBITS, 1 << 4 | 1 << 2));
	CHECK(setgroups(4, groups));
	CHECK(setresgid(2001, 2002, 2003));
	CHECK(setresuid(1001, 1002, 1003));
	setfsgid(2004);
	setfsuid(1004);
	if (ambient) {
		CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
		CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0));
	}
	CHECK(prctl(PR_CAPBSET_DROP, CAP_CHOWN)); // inheritable, but not in the bounding set
	CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
	CHECK(prctl(PR_SET_SECUREBITS, ambient ? 1 << 6 | 1 << 7 | 1 << 4 : 1 << 0 | 1 << 1)); // NO_CAP_AMBIENT_RAISE and its lock; NOROOT
	d[0].permitted = 1 << CAP_NET_RAW | 1 << CAP_KILL | 1 << CAP_FOWNER;
	d[0].effective = 1 << CAP_KILL;
	d[1].permitted = d[1].effective = d[1].inheritable = 0;
	CHECK(syscall(SYS_capset, &h, d));
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void prctls(void) {
	CHECK(prctl(PR_SET_NAME, "a) b\xff\n(", 0, 0, 0));
	CHECK(prctl(PR_SET_TIMERSLACK, 123456, 0, 0, 0));
	CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0));
	CHECK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	CHECK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
	CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	CHECK(prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0));
	CHECK(mlockall(MCL_FUTURE | MCL_ONFAULT));
	CHECK(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0));
	CHECK(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
}

struct attr { unsigned size, policy; unsigned long flags; int nice; unsigned prio; unsigned long runtime, deadline, period; };

static void setattr(struct attr a) {
	a.size = sizeof a;
	CHECK(syscall(SYS_sched_setattr, 0, &a, 0));
}

static void one_cpu(void) {
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	CHECK(sched_setaffinity(0, sizeof one, &one));
}

static void tell(const char *file, const char *value) {
	int fd = open(file, O_WRONLY);
	CHECK(fd);
	CHECK(write(fd, value, strlen(value)));
	CHECK(close(fd));
}

static void limits(void) {
	struct rlimit l = {77, 99}, core = {1 << 20, RLIM_INFINITY};
	CHECK(setrlimit(RLIMIT_NOFILE, &l));
	CHECK(setrlimit(RLIMIT_CORE, &core));
	CHECK(personality(ADDR_NO_RANDOMIZE | SHORT_INODE));
	tell("/proc/self/coredump_filter", "0x7f");
	tell("/proc/self/oom_score_adj", "123");
	CHECK(setsid());
	tell("/proc/self/autogroup", "4");
}

static void seccomp(void) {
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog p = {1, &allow};
	CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p));
}

static const char *thread_does;

// wait_for_leader waits until the first thread has ended.
static void wait_for_leader(void) {
	char buf[512] = "";
	while (!strstr(buf, ") Z")) {
		usleep(1000);
		int fd = open("/proc/self/stat", O_RDONLY);
		CHECK(fd);
		CHECK(read(fd, buf, sizeof buf - 1));
		close(fd);
	}
	puts("ready");
	fflush(stdout);
}

static void *thread(void *x) {
	if (!strcmp(thread_does, "own-fs"))
		CHECK(unshare(CLONE_FS));
	else if (!strcmp(thread_does, "own-files"))
		CHECK(unshare(CLONE_FILES));
	else if (!strcmp(thread_does, "own-personality"))
		CHECK(personality(ADDR_NO_RANDOMIZE));
	else if (!strcmp(thread_does, "own-net"))
		CHECK(unshare(CLONE_NEWNET));
	else if (!strcmp(thread_does, "timer-of-dead")) {
		struct sigevent tid = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2};
		tid._sigev_un._tid = syscall(SYS_gettid);
		CHECK(timer_create(CLOCK_MONOTONIC, &tid, &ids[0]));
		return 0;
	} else if (!strcmp(thread_does, "thread-policy"))
		CHECK(syscall(SYS_set_mempolicy, 2, &(unsigned long){1}, 64));
	else if (!strcmp(thread_does, "zombie-leader"))
		wait_for_leader();
	if (strcmp(thread_does, "zombie-leader"))
		pthread_barrier_wait(x);
	for (;;)
		pause();
}

static void with_thread(const char *what) {
	pthread_t t;
	static pthread_barrier_t bar;
	pthread_barrier_init(&bar, 0, 2);
	thread_does = what;
	CHECK(-pthread_create(&t, 0, thread, &bar));
	if (!strcmp(what, "timer-of-dead"))
		pthread_join(t, 0);
	else if (!strcmp(what, "zombie-leader"))
		pthread_exit(0);
	else
		pthread_barrier_wait(&bar);
}

static void undo(void) {
	int id = semget(IPC_PRIVATE, 1, 0600);
	CHECK(id);
	struct sembuf up = {0, 1, SEM_UNDO};
	CHECK(semop(id, &up, 1));
	printf("semid %d\n", id);
}

static void uring(void) {
	struct io_uring_params p = {.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 100000};
	CHECK(syscall(SYS_io_uring_setup, 4, &p));
}

static void sud(void) {
	static char selector; // SYSCALL_DISPATCH_FILTER_ALLOW
	CHECK(prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector));
}

static void ldt(void) {
	struct { unsigned entry, base, limit, bits; } d = {0, 0x1000, 1, 1};
	CHECK(-(syscall(SYS_modify_ldt, 1, &d, sizeof d) != 0)); // its errors are positive
}

static void set(const char *w, const char *arg) {
	if (!strcmp(w, "signals")) signals();
	else if (!strcmp(w, "pending")) pending();
	else if (!strcmp(w, "bare")) bare();
	else if (!strcmp(w, "timers")) timers();
	else if (!strcmp(w, "fired")) fired();
	else if (!strcmp(w, "creds")) creds(0);
	else if (!strcmp(w, "ambient")) creds(1);
	else if (!strcmp(w, "prctl")) prctls();
	else if (!strcmp(w, "batch")) setattr((struct attr){.policy = SCHED_BATCH, .nice = 7, .runtime = 5000000}), one_cpu(), CHECK(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
	else if (!strcmp(w, "fifo")) CHECK(setpriority(PRIO_PROCESS, 0, 3)), setattr((struct attr){.policy = SCHED_FIFO, .flags = 1, .prio = 5}), CHECK(syscall(SYS_ioprio_set, 1, 0, 3 << 13));
	else if (!strcmp(w, "deadline")) setattr((struct attr){.policy = 6, .runtime = 1000000, .deadline = 100000000, .period = 100000000});
	else if (!strcmp(w, "limits")) limits();
	else if (!strcmp(w, "cwd")) CHECK(chdir(arg)), umask(027);
	else if (!strcmp(w, "chroot")) CHECK(chroot(arg));
	else if (!strcmp(w, "rmdir")) CHECK(rmdir(arg));
	else if (!strcmp(w, "unlink")) CHECK(unlink(arg));
	else if (!strcmp(w, "seccomp")) seccomp();
	else if (!strcmp(w, "policy")) CHECK(syscall(SYS_set_mempolicy, 2, &(unsigned long){1}, 64));
	else if (!strcmp(w, "undo")) undo();
	else if (!strcmp(w, "uring")) uring();
	else if (!strcmp(w, "ldt")) ldt();
	else if (!strcmp(w, "sud")) sud();
	else if (!strcmp(w, "membarrier")) CHECK(syscall(SYS_membarrier, 16, 0, 0));
	else if (!strcmp(w, "keyring")) CHECK(syscall(SYS_keyctl, 0, -1, 1));
	else if (!strcmp(w, "thread")) with_thread(arg);
	else fprintf(stderr, "unknown piece %s\n", w), exit(2);
}

int main(int argc, char **argv) {
	(void)argc;
	alarm(0);
	for (int sig = 1; sig <= 64; sig++) // whoever started us may have left signals ignored
		syscall(SYS_rt_sigaction, sig, &(long[4]){0}, NULL, 8);
	for (char **a = argv + 1; *a; a++) {
		char *arg = strchr(*a, '=');
		if (arg) *arg++ = 0;
		set(*a, arg);
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
