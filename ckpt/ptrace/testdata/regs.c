// A target that holds known values in every register it can reach and checks them for as
// long as it runs. regs FILE MODE: FILE is a shared page of counters, one 8-byte slot for each
// worker, by which the test sees that all go on. It exits with 1 and a sentence on damage.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
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
struct ctx { uint64_t rounds, bad, rsp, flags, pad[4]; uint8_t vec[16][32]; uint8_t got[16][32]; double x87in, x87out; uint32_t mxcsr, mxcsr_out; uint16_t cw, cw_out; uint8_t pad2[4];
	uint8_t zmm[32][64], zmm_got[32][64]; uint64_t k[8], k_got[8]; };
_Static_assert(offsetof(struct ctx, zmm) == 1120 && offsetof(struct ctx, k) == 5216, "offsets in the assembly");
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
"2: testl $1, avx512(%rip)\n"
"  jz 1f\n"
"  lea 1120(%rdi), %rax\n"
".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
"  vmovdqu64 \\n*64(%rax), %zmm\\n\n"
".endr\n"
".irp n,0,1,2,3,4,5,6,7\n"
"  kmovw 5216+8*\\n(%rdi), %k\\n\n"
".endr\n"
"1: fninit\n"
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
"  testl $1, avx512(%rip)\n"
"  jz 3f\n"
"  lea 3168(%rdi), %rax\n"
".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
"  vmovdqu64 %zmm\\n, \\n*64(%rax)\n"
".endr\n"
".irp n,0,1,2,3,4,5,6,7\n"
"  kmovw %k\\n, 5280+8*\\n(%rdi)\n"
".endr\n"
"3: lea 576(%rdi), %rax\n"
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
int avx512 __attribute__((used));

// AMX: eight tiles of 16 rows of 64 bytes.
static int amx, pku;

static int init_amx(void) {
	return avx512 && !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18);
}

struct tiles { uint8_t config[64], in[8][1024], out[8][1024]; };

#define TILE(op, n, p) __asm__ volatile(op : : "r"(p), "r"(64L) : "memory")
__attribute__((target("amx-tile")))
static void load_tiles(struct tiles *t, int seed) {
	memset(t->config, 0, 64);
	t->config[0] = 1;
	for (int i = 0; i < 8; i++) {
		t->config[16 + 2 * i] = 64; // bytes a row
		t->config[48 + i] = 16;     // rows
		for (int j = 0; j < 1024; j++) t->in[i][j] = seed + 31 * i + j;
	}
	__asm__ volatile("ldtilecfg (%0)" : : "r"(t->config) : "memory");
	TILE("tileloadd (%0,%1,1),%%tmm0", 0, t->in[0]); TILE("tileloadd (%0,%1,1),%%tmm1", 1, t->in[1]);
	TILE("tileloadd (%0,%1,1),%%tmm2", 2, t->in[2]); TILE("tileloadd (%0,%1,1),%%tmm3", 3, t->in[3]);
	TILE("tileloadd (%0,%1,1),%%tmm4", 4, t->in[4]); TILE("tileloadd (%0,%1,1),%%tmm5", 5, t->in[5]);
	TILE("tileloadd (%0,%1,1),%%tmm6", 6, t->in[6]); TILE("tileloadd (%0,%1,1),%%tmm7", 7, t->in[7]);
}

static void check_tiles(struct tiles *t) {
	TILE("tilestored %%tmm0,(%0,%1,1)", 0, t->out[0]); TILE("tilestored %%tmm1,(%0,%1,1)", 1, t->out[1]);
	TILE("tilestored %%tmm2,(%0,%1,1)", 2, t->out[2]); TILE("tilestored %%tmm3,(%0,%1,1)", 3, t->out[3]);
	TILE("tilestored %%tmm4,(%0,%1,1)", 4, t->out[4]); TILE("tilestored %%tmm5,(%0,%1,1)", 5, t->out[5]);
	TILE("tilestored %%tmm6,(%0,%1,1)", 6, t->out[6]); TILE("tilestored %%tmm7,(%0,%1,1)", 7, t->out[7]);
	if (memcmp(t->in, t->out, sizeof t->in)) FAIL("AMX tiles");
}

// Protection keys: a value of PKRU that is not the kernel's own.
static uint32_t rdpkru(void) {
	uint32_t a;
	__asm__ volatile(".byte 0x0f,0x01,0xee" : "=a"(a) : "c"(0) : "edx"); // rdpkru
	return a;
}

static void wrpkru(uint32_t a) {
	__asm__ volatile(".byte 0x0f,0x01,0xef" : : "a"(a), "c"(0), "d"(0)); // wrpkru
}

static void check_regs(struct ctx *c, int seed) {
	int width = avx ? 32 : 16;
	c->rounds = 2000;
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 32; j++)
			c->vec[i][j] = c->zmm[i][j] = seed + 17 * i + j;
	for (int i = 0; i < 32; i++)
		for (int j = i < 16 ? 32 : 0; j < 64; j++)
			c->zmm[i][j] = seed + 13 * i + 3 * j;
	for (int i = 0; i < 8; i++) c->k[i] = (uint16_t)(seed * 257 + i);
	c->x87in = 1.5 + seed;
	c->mxcsr = 0x1f80 | 0x6000; // round towards zero
	c->cw = 0x0e7f;              // x87: round towards zero, double precision
	spin_check(c);
	uint32_t normal = 0x1f80;
	__asm__ volatile("ldmxcsr %0" : : "m"(normal));
	if (c->bad) FAIL("general registers, check %d", (int)c->bad);
	for (int i = 0; i < 16; i++)
		if (memcmp(c->vec[i], c->got[i], width)) FAIL("vector register %d", i);
	if (avx512 && memcmp(c->zmm, c->zmm_got, sizeof c->zmm)) FAIL("AVX-512 registers");
	if (avx512 && memcmp(c->k, c->k_got, sizeof c->k)) FAIL("AVX-512 mask registers");
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
	struct tiles *tiles = aligned_alloc(64, sizeof *tiles);
	uint32_t rights = 0x55555554u ^ 3u << (2 * (i % 8 + 1)); // one more key may be used
	if (pku) wrpkru(rights);
	if (amx) load_tiles(tiles, i);
	for (int n = 0;; n++) {
		check_regs(c, n + i);
		if (pku && rdpkru() != rights) FAIL("protection key rights %x, want %x", rdpkru(), rights);
		if (amx) {
			check_tiles(tiles);
			load_tiles(tiles, n + i);
		}
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

// guard_vdso maps a page without access right behind the vdso. It exits with 3 if there is
// something already.
static void guard_vdso(void) {
	char line[256];
	FILE *f = fopen("/proc/self/maps", "r");
	while (f && fgets(line, sizeof line, f)) {
		unsigned long from, to;
		if (!strstr(line, "[vdso]") || sscanf(line, "%lx-%lx", &from, &to) != 2) continue;
		void *p = mmap((void *)to, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (p != (void *)to) _exit(3);
		fclose(f);
		return;
	}
	_exit(3);
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
	avx512 = !!__builtin_cpu_supports("avx512f");
	amx = init_amx();
	pku = pkey_alloc(0, 0) >= 0;
	int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, 4096)) FAIL("open %s", argv[1]);
	slots = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	eintr = slots + NSLOTS - 1;
	struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART};
	sigaction(SIGALRM, &sa, NULL);
	struct itimerval it = {{0, 3000}, {0, 3000}};
	if (!strcmp(argv[2], "guard")) guard_vdso();
	if (!strcmp(argv[2], "single") || !strcmp(argv[2], "guard")) {
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
