// Small targets: modes MODE [ARG]. Each writes a line when it is ready.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>

#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void ready(const char *s) {
	printf("%s\n", s);
	fflush(stdout);
}

// waitpoll exits with 1 as soon as any wait finds a child.
static void waitpoll(void) {
	ready("ready");
	for (;;) {
		if (wait4(-1, NULL, WNOHANG, NULL) != -1 || errno != ECHILD) _exit(1);
		if (wait4(-1, NULL, WNOHANG | __WALL, NULL) != -1 || errno != ECHILD) _exit(1);
		usleep(200);
	}
}

// memory writes a counter into many pages and checks that it alone does.
static void memory(void) {
	size_t n = 64 << 20;
	volatile uint64_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char line[64];
	snprintf(line, sizeof line, "%p", (void *)p);
	memset((void *)p, 0, n);
	for (uint64_t v = 1;; v++) {
		for (size_t i = 0; i < n / 8; i += 512) {
			if (p[i] != v - 1) _exit(1);
			p[i] = v;
		}
		if (v == 1) ready(line);
	}
}

static volatile int urgs;
static volatile pid_t urg_from;

static void on_urg(int sig, siginfo_t *si, void *uc) {
	urgs++;
	urg_from = si->si_pid;
}

// urgent prints how many SIGURG it got, and from whom, after each line it reads.
static void urgent(int block) {
	struct sigaction sa = {.sa_sigaction = on_urg, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigaction(SIGURG, &sa, NULL);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGURG);
	if (block) sigprocmask(SIG_BLOCK, &set, NULL);
	ready("ready");
	char line[16];
	while (fgets(line, sizeof line, stdin)) {
		if (block) sigprocmask(SIG_UNBLOCK, &set, NULL);
		printf("%d %d\n", urgs, urg_from);
		fflush(stdout);
		if (block) sigprocmask(SIG_BLOCK, &set, NULL);
	}
	exit(0);
}

// critical stays inside a restartable sequence for good: every abort begins it anew.
static void critical(void) {
	struct rseq *rs = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	char line[64];
	extern char cs_start[], cs_end[];
	snprintf(line, sizeof line, "%p %p", (void *)cs_start, (void *)cs_end);
	ready(line);
	__asm__ volatile(
		".pushsection .data\n"
		".balign 32\n"
		"7: .long 0, 0\n"
		".quad cs_start, cs_end - cs_start, cs_abort\n"
		".popsection\n"
		".globl cs_start, cs_end\n"
		"1: lea 7b(%%rip), %%rax\n"
		"mov %%rax, 8(%0)\n"
		"cs_start: nop\n"
		"2: inc %%rcx\n"
		"jmp 2b\n"
		"cs_end: nop\n"
		".long 0x53053053\n" // RSEQ_SIG
		"cs_abort: jmp 1b\n"
		: : "r"(rs) : "rax", "rcx", "memory");
}

// inVFork holds its parent in vfork until it is killed.
static void inVFork(void) {
	ready("ready");
	if (vfork() == 0) {
		for (;;) usleep(1000);
	}
	_exit(0);
}

// filtered installs a filter that kills the process on any call it does not make, and, if
// masks is 0, on rt_sigprocmask, which almost every program makes now and then.
static void filtered(int masks) {
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 5, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_nanosleep, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, masks ? SYS_rt_sigprocmask : SYS_write, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = {sizeof f / sizeof f[0], f};
	ready("ready");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p)) _exit(2);
	for (;;) usleep(300);
}

static volatile char selector;
static volatile int caught;

static void on_sys(int sig) {
	selector = SYSCALL_DISPATCH_FILTER_ALLOW;
	caught++;
}

// dispatched has its own system calls turned into SIGSYS, and checks that they are.
static void dispatched(void) {
	signal(SIGSYS, on_sys);
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &selector)) _exit(2);
	ready("ready");
	for (;;) {
		int before = caught;
		selector = SYSCALL_DISPATCH_FILTER_BLOCK;
		syscall(SYS_getpid);
		if (caught != before + 1) _exit(1);
	}
}

// stub gives the address of executable scratch memory.
static void stub(void) {
	void *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char line[64];
	snprintf(line, sizeof line, "%p", p);
	ready(line);
	for (;;) pause();
}

// queued blocks SIGRTMIN and has it queued three times to the thread and twice to the process.
static void queued(void) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 3; i++) pthread_sigqueue(pthread_self(), SIGRTMIN, (union sigval){.sival_int = i});
	for (int i = 0; i < 2; i++) sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 10 + i});
	ready("ready");
	for (;;) pause();
}

static volatile int handled;

static void on_usr(int sig) {
	char c;
	if (write(1, "in the handler\n", 15) != 15) _exit(1); // the signal may have come inside of stdio
	if (read(0, &c, 1) != 1) _exit(1);
	handled++;
}

// handler computes with signals open until SIGUSR1 comes, whose handler waits for a byte.
static void handler(void) {
	signal(SIGUSR1, on_usr);
	if (write(1, "ready\n", 6) != 6) _exit(1);
	while (!handled) __asm__ volatile("" : : : "memory");
	ready("went on");
	for (;;) pause();
}

int main(int argc, char **argv) {
	const char *m = argc > 1 ? argv[1] : "";
	alarm(300); // should the test be gone
	if (!strcmp(m, "mdwe")) {
		if (prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0)) return 2;
		waitpoll();
	}
	if (!strcmp(m, "subreaper")) {
		if (prctl(PR_SET_CHILD_SUBREAPER, 1)) return 2;
		ready("ready");
		for (;;) {
			if (wait4(-1, NULL, WNOHANG, NULL) > 0) _exit(1);
			usleep(200);
		}
	}
	if (!strcmp(m, "limited")) {
		struct rlimit l = {1, 1};
		if (setrlimit(RLIMIT_NPROC, &l) || setresgid(54321, 54321, 54321) || setresuid(54321, 54321, 54321)) return 2;
		waitpoll();
	}
	if (!strcmp(m, "waitpoll")) waitpoll();
	if (!strcmp(m, "memory")) memory();
	if (!strcmp(m, "urgent")) urgent(0);
	if (!strcmp(m, "urgentblocked")) urgent(1);
	if (!strcmp(m, "critical")) critical();
	if (!strcmp(m, "vfork")) inVFork();
	if (!strcmp(m, "filtered")) filtered(0);
	if (!strcmp(m, "filtered-masks")) filtered(1);
	if (!strcmp(m, "dispatched")) dispatched();
	if (!strcmp(m, "stub")) stub();
	if (!strcmp(m, "queued")) queued();
	if (!strcmp(m, "handler")) handler();
	return 2;
}
