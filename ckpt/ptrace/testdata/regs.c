// A target that holds known values in every register it can reach and checks them for as
// long as it runs. regs FILE MODE: FILE is a shared page of counters, one 8-byte slot for each
// worker, by which the test sees that all go on. It exits with 1 and a sentence on damage.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t *slots;
static volatile uint64_t *eintr; // EINTR seen by epoll_wait and nanosleep: the last slot
#define NSLOTS 64

#define FAIL(...) do { fprintf(stderr, "DAMAGE pid %d tid %d: ", getpid(), (int)syscall(SYS_gettid)); \
	fprintf(stderr, __VA_ARGS__); fprintf(stderr, " (errno %d)\n", errno); _exit(1); } while (0)

// One round: fill the registers, spin, compare. Layout of ctx, in 8-byte words:
// 0 rounds, 1 result (0: intact), 2 saved rsp, 3 flags found, 8.. vector seed (4 x 32 bytes)
struct ctx { uint64_t rounds, bad, rsp, flags, pad[4]; uint8_t vec[16][32]; uint8_t got[16][32]; double x87in, x87out; uint32_t mxcsr, mxcsr_out; uint16_t cw, cw_out; };
void spin_check(struct ctx *c);
__asm__(
".globl spin_check\n"
"spin_check:\n"
"  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
"  mov %rsp, 16(%rdi)\n"
// the red zone
"  movabs $0x1122334455667788, %rax\n"
"  mov %rax, -8(%rsp); mov %rax, -64(%rsp); mov %rax, -128(%rsp)\n"
// vectors
"  lea 64(%rdi), %rax\n"
"  testl $1, avx(%rip)\n"
"  jz 1f\n"
".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
"  vmovdqu \\n*32(%rax), %ymm\\n\n"
".endr\n"
"  jmp 2f\n"
"1:\n"
".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
"  movdqu \\n*32(%rax), %xmm\\n\n"
".endr\n"
"2:\n"
"  fninit\n"
"  fldl 1088(%rdi)\n" // x87in: 64 + 512 + 512
"  ldmxcsr 1104(%rdi)\n"
"  fldcw 1112(%rdi)\n"
// general registers
"  movabs $0x0101010101010101, %rbx\n"
"  lea 1(%rbx), %rbp; lea 2(%rbx), %rsi; lea 3(%rbx), %r8; lea 4(%rbx), %r9; lea 5(%rbx), %r10\n"
"  lea 6(%rbx), %r11; lea 7(%rbx), %r12; lea 8(%rbx), %r13; lea 9(%rbx), %r14; lea 10(%rbx), %r15; lea 11(%rbx), %rdx\n"
"  mov (%rdi), %rcx\n"
"  stc\n"
"3: nop\n"
"  lea -1(%rcx), %rcx\n"
"  jrcxz 4f\n"
"  jc 3b\n"
"  movq $1, 8(%rdi); jmp 9f\n" // the carry flag was lost
"4: pushfq\n"
"  pop %rax\n"
"  mov %rax, 24(%rdi)\n"
"  movabs $0x1122334455667788, %rax\n"
"  mov $2, %ecx\n"
"  cmp %rax, -64(%rsp); jne 8f\n" // -8 was used by pushfq
"  cmp %rax, -128(%rsp); jne 8f\n"
"  movabs $0x0101010101010101, %rax\n"
"  mov $3, %ecx\n"
"  cmp %rax, %rbx; jne 8f\n"
"  inc %rax; cmp %rax, %rbp; jne 8f\n"
"  inc %rax; cmp %rax, %rsi; jne 8f\n"
"  inc %rax; cmp %rax, %r8; jne 8f\n"
"  inc %rax; cmp %rax, %r9; jne 8f\n"
"  inc %rax; cmp %rax, %r10; jne 8f\n"
"  inc %rax; cmp %rax, %r11; jne 8f\n"
"  inc %rax; cmp %rax, %r12; jne 8f\n"
"  inc %rax; cmp %rax, %r13; jne 8f\n"
"  inc %rax; cmp %rax, %r14; jne 8f\n"
"  inc %rax; cmp %rax, %r15; jne 8f\n"
"  inc %rax; cmp %rax, %rdx; jne 8f\n"
"  mov $4, %ecx\n"
"  cmp %rsp, 16(%rdi); jne 8f\n"
"  xor %ecx, %ecx\n"
"8: mov %rcx, 8(%rdi)\n"
"9: fstpl 1096(%rdi)\n"
"  stmxcsr 1108(%rdi)\n"
"  fnstcw 1114(%rdi)\n"
"  lea 576(%rdi), %rax\n"
"  testl $1, avx(%rip)\n"
"  jz 1f\n"
".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
"  vmovdqu %ymm\\n, \\n*32(%rax)\n"
".endr\n"
"  vzeroupper\n"
"  jmp 2f\n"
"1:\n"
".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
"  movdqu %xmm\\n, \\n*32(%rax)\n"
".endr\n"
"2: fninit\n"
"  cld\n"
"  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
"  ret\n");
int avx __attribute__((used));

static void check_regs(struct ctx *c, int seed) {
	int width = avx ? 32 : 16;
	c->rounds = 2000;
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 32; j++)
			c->vec[i][j] = seed + 17 * i + j;
	c->x87in = 1.5 + seed;
	c->mxcsr = 0x1f80 | 0x6000; // round towards zero
	c->cw = 0x0e7f;              // x87: round towards zero, double precision
	spin_check(c);
	uint32_t normal = 0x1f80;
	__asm__ volatile("ldmxcsr %0" : : "m"(normal));
	if (c->bad) FAIL("general registers, check %d", (int)c->bad);
	for (int i = 0; i < 16; i++)
		if (memcmp(c->vec[i], c->got[i], width)) FAIL("vector register %d", i);
	if (c->x87in != c->x87out) FAIL("x87 register %g, want %g", c->x87out, c->x87in);
	if ((c->mxcsr_out & ~0x3f) != c->mxcsr) FAIL("mxcsr %x", c->mxcsr_out);
	if (c->cw_out != c->cw) FAIL("x87 control word %x", c->cw_out);
}

static void check_signals(const sigset_t *want, const stack_t *alt) {
	sigset_t now;
	stack_t s;
	if (pthread_sigmask(SIG_SETMASK, NULL, &now)) FAIL("pthread_sigmask");
	for (int i = 1; i < 64; i++)
		if (sigismember(&now, i) != sigismember(want, i)) FAIL("signal mask, signal %d", i);
	if (sigaltstack(NULL, &s)) FAIL("sigaltstack");
	if (s.ss_sp != alt->ss_sp || s.ss_size != alt->ss_size || s.ss_flags != alt->ss_flags) FAIL("alternate stack");
	if (getppid() == 1) _exit(0); // the test is gone
	if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD) FAIL("a child appeared");
}

static void on_alarm(int sig) {
	volatile double d = 3.25; // dirties the vector registers
	volatile char big[2048];
	for (int i = 0; i < (int)sizeof big; i++) big[i] = i;
	d = d * sig;
}

// setup gives the calling thread a mask and an alternate stack of its own.
static void setup(sigset_t *mask, stack_t *alt, int extra) {
	alt->ss_size = 16384;
	alt->ss_flags = 0;
	alt->ss_sp = malloc(alt->ss_size);
	if (sigaltstack(alt, NULL)) FAIL("sigaltstack");
	sigemptyset(mask);
	sigaddset(mask, extra);
	if (pthread_sigmask(SIG_SETMASK, mask, NULL)) FAIL("pthread_sigmask");
}

static void *compute(void *arg) {
	long i = (long)arg;
	struct ctx *c = aligned_alloc(64, (sizeof *c + 63) & ~63);
	sigset_t mask;
	stack_t alt;
	setup(&mask, &alt, i % 2 ? SIGUSR1 : SIGWINCH);
	for (int n = 0;; n++) {
		check_regs(c, n + i);
		check_signals(&mask, &alt);
		slots[i]++;
	}
	return NULL;
}

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static long turn, a, b;

static void *locker(void *arg) {
	long i = (long)arg;
	sigset_t mask;
	stack_t alt;
	setup(&mask, &alt, SIGUSR2);
	for (;;) {
		pthread_mutex_lock(&mu);
		if (a != b) FAIL("mutex broken");
		a++;
		for (volatile int k = 0; k < 200; k++);
		b++;
		turn++;
		pthread_cond_broadcast(&cv);
		if (turn % 4 == i % 4) {
			struct timespec ts;
			clock_gettime(CLOCK_REALTIME, &ts);
			ts.tv_nsec += 2000000;
			if (ts.tv_nsec >= 1000000000) ts.tv_sec++, ts.tv_nsec -= 1000000000;
			int e = pthread_cond_timedwait(&cv, &mu, &ts);
			if (e && e != ETIMEDOUT) FAIL("cond_timedwait %d", e);
		}
		pthread_mutex_unlock(&mu);
		check_signals(&mask, &alt);
		slots[i]++;
	}
	return NULL;
}

static int pfd[2];

static void *sleeper(void *arg) {
	long i = (long)arg;
	sigset_t mask;
	stack_t alt;
	setup(&mask, &alt, SIGUSR2);
	sigaddset(&mask, SIGALRM);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	int ep = epoll_create1(0);
	struct epoll_event ev = {.events = EPOLLIN};
	int idle[2];
	if (pipe(idle)) FAIL("pipe");
	epoll_ctl(ep, EPOLL_CTL_ADD, idle[0], &ev);
	for (int n = 0;; n++) {
		int r;
		char c;
		switch (i % 4) {
		case 0: {
			struct timespec ts = {0, 7000000}, rem;
			while (nanosleep(&ts, &rem)) {
				if (errno != EINTR) FAIL("nanosleep");
				eintr[0]++;
				ts = rem;
			}
			break;
		}
		case 1:
			r = poll(&(struct pollfd){.fd = idle[0], .events = POLLIN}, 1, 6);
			if (r == -1 && errno == EINTR) eintr[0]++; // only where the C library hides the number
			else if (r) FAIL("poll %d", r);
			break;
		case 2:
			r = epoll_wait(ep, &ev, 1, 5);
			if (r == -1 && errno == EINTR) eintr[0]++;
			else if (r) FAIL("epoll_wait %d", r);
			break;
		case 3:
			r = read(pfd[0], &c, 1);
			if (r != 1 || c != 'x') FAIL("read %d", r);
			break;
		}
		check_signals(&mask, &alt);
		slots[i]++;
	}
	return NULL;
}

static void start(void *(*f)(void *), long from, long n) {
	pthread_t t;
	for (long i = from; i < from + n; i++)
		if (pthread_create(&t, NULL, f, (void *)i)) FAIL("pthread_create");
}

int main(int argc, char **argv) {
	if (argc != 3) return 2;
	__builtin_cpu_init();
	avx = !!__builtin_cpu_supports("avx");
	int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, 4096)) FAIL("open %s", argv[1]);
	slots = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	eintr = slots + NSLOTS - 1;
	struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART};
	sigaction(SIGALRM, &sa, NULL);
	struct itimerval it = {{0, 3000}, {0, 3000}};
	if (!strcmp(argv[2], "single")) {
		setitimer(ITIMER_REAL, &it, NULL);
		compute((void *)0);
	} else if (!strcmp(argv[2], "locks")) {
		setitimer(ITIMER_REAL, &it, NULL);
		start(locker, 1, 5);
		start(compute, 6, 2);
		locker((void *)0);
	} else if (!strcmp(argv[2], "sleep")) {
		if (pipe(pfd)) FAIL("pipe");
		start(sleeper, 0, 4);
		for (;;) {
			if (write(pfd[1], "x", 1) != 1) FAIL("write");
			usleep(4000);
		}
	}
	return 2;
}
