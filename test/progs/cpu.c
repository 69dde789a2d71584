// A spinner that holds values in every register it can reach (general, x87, AVX and where the
// CPU has it AVX-512, MXCSR, the x87 control word, fs and gs base) and compares them in a
// loop without reloading them: it is frozen in mid-computation. Another thread does the
// system calls and ends the loop.
#include "prog.h"
#include <asm/prctl.h>
#include <cpuid.h>
#include <stdatomic.h>

static struct {
	_Atomic long stop;
	long bad;
	long rounds;
	uint64_t general[8];
	unsigned char vector[32][64] __attribute__((aligned(64)));
	unsigned char now[64] __attribute__((aligned(64)));
	uint64_t masks[8];
	double x87[6];
} s __attribute__((aligned(64)));

// spin_avx keeps rbx rcx rsi r8..r12, ymm0..ymm14 and six x87 registers loaded. It leaves
// with s.bad set to the number of the first check that failed.
static void spin_avx(void)
{
	__asm__ volatile(
		"mov %[s], %%rdi\n\t"
		"vmovdqa 0*64+%c[vec](%%rdi), %%ymm0\n\tvmovdqa 1*64+%c[vec](%%rdi), %%ymm1\n\t"
		"vmovdqa 2*64+%c[vec](%%rdi), %%ymm2\n\tvmovdqa 3*64+%c[vec](%%rdi), %%ymm3\n\t"
		"vmovdqa 4*64+%c[vec](%%rdi), %%ymm4\n\tvmovdqa 5*64+%c[vec](%%rdi), %%ymm5\n\t"
		"vmovdqa 6*64+%c[vec](%%rdi), %%ymm6\n\tvmovdqa 7*64+%c[vec](%%rdi), %%ymm7\n\t"
		"vmovdqa 8*64+%c[vec](%%rdi), %%ymm8\n\tvmovdqa 9*64+%c[vec](%%rdi), %%ymm9\n\t"
		"vmovdqa 10*64+%c[vec](%%rdi), %%ymm10\n\tvmovdqa 11*64+%c[vec](%%rdi), %%ymm11\n\t"
		"vmovdqa 12*64+%c[vec](%%rdi), %%ymm12\n\tvmovdqa 13*64+%c[vec](%%rdi), %%ymm13\n\t"
		"vmovdqa 14*64+%c[vec](%%rdi), %%ymm14\n\t"
		"fninit\n\t"
		"fldl 0+%c[fp](%%rdi)\n\tfldl 8+%c[fp](%%rdi)\n\tfldl 16+%c[fp](%%rdi)\n\t"
		"fldl 24+%c[fp](%%rdi)\n\tfldl 32+%c[fp](%%rdi)\n\tfldl 40+%c[fp](%%rdi)\n\t"
		"mov 0+%c[gen](%%rdi), %%rbx\n\tmov 8+%c[gen](%%rdi), %%rcx\n\t"
		"mov 16+%c[gen](%%rdi), %%rsi\n\tmov 24+%c[gen](%%rdi), %%r8\n\t"
		"mov 32+%c[gen](%%rdi), %%r9\n\tmov 40+%c[gen](%%rdi), %%r10\n\t"
		"mov 48+%c[gen](%%rdi), %%r11\n\tmov 56+%c[gen](%%rdi), %%r12\n\t"
		"1:\n\t"
		"incq %c[rounds](%%rdi)\n\t"
#define GENERAL(n, off, reg) "mov $" #n ", %%edx\n\tcmp " #off "+%c[gen](%%rdi), %%" reg "\n\tjne 3f\n\t"
		GENERAL(1, 0, "rbx") GENERAL(2, 8, "rcx") GENERAL(3, 16, "rsi") GENERAL(4, 24, "r8")
		GENERAL(5, 32, "r9") GENERAL(6, 40, "r10") GENERAL(7, 48, "r11") GENERAL(8, 56, "r12")
#define VECTOR(n)                                                                                       \
	"mov $100+" #n ", %%edx\n\tvpxor " #n "*64+%c[vec](%%rdi), %%ymm" #n ", %%ymm15\n\t"            \
	"vptest %%ymm15, %%ymm15\n\tjnz 3f\n\t"
		VECTOR(0) VECTOR(1) VECTOR(2) VECTOR(3) VECTOR(4) VECTOR(5) VECTOR(6) VECTOR(7)
		VECTOR(8) VECTOR(9) VECTOR(10) VECTOR(11) VECTOR(12) VECTOR(13) VECTOR(14)
#define X87(n, off)                                                                                     \
	"mov $200+" #n ", %%edx\n\tfldl " #off "+%c[fp](%%rdi)\n\tfucomip %%st(" #n "), %%st\n\t"       \
	"jne 3f\n\tjp 3f\n\t"
		X87(1, 40) X87(2, 32) X87(3, 24) X87(4, 16) X87(5, 8) X87(6, 0)
		"cmpq $0, %c[stop](%%rdi)\n\tje 1b\n\t"
		"xor %%edx, %%edx\n\t"
		"3:\n\t"
		"mov %%rdx, %c[bad](%%rdi)\n\t"
		"fninit\n\tvzeroupper\n\t"
		:
		: [s] "r"(&s), [vec] "i"(__builtin_offsetof(__typeof__(s), vector)),
		  [fp] "i"(__builtin_offsetof(__typeof__(s), x87)),
		  [gen] "i"(__builtin_offsetof(__typeof__(s), general)),
		  [rounds] "i"(__builtin_offsetof(__typeof__(s), rounds)),
		  [stop] "i"(__builtin_offsetof(__typeof__(s), stop)),
		  [bad] "i"(__builtin_offsetof(__typeof__(s), bad))
		: "rdi", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "memory", "cc", "xmm0",
		  "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
		  "xmm12", "xmm13", "xmm14", "xmm15");
}

// spin_avx512 keeps zmm16..zmm31 and k1..k6 loaded.
__attribute__((target("avx512f,avx512bw"))) static void spin_avx512(void)
{
	__asm__ volatile(
		"mov %[s], %%rdi\n\t"
#define LOADZ(n) "vmovdqa64 " #n "*64+%c[vec](%%rdi), %%zmm" #n "\n\t"
		LOADZ(16) LOADZ(17) LOADZ(18) LOADZ(19) LOADZ(20) LOADZ(21) LOADZ(22) LOADZ(23)
		LOADZ(24) LOADZ(25) LOADZ(26) LOADZ(27) LOADZ(28) LOADZ(29) LOADZ(30) LOADZ(31)
#define LOADK(n) "kmovq " #n "*8+%c[k](%%rdi), %%k" #n "\n\t"
		LOADK(1) LOADK(2) LOADK(3) LOADK(4) LOADK(5) LOADK(6)
		"1:\n\t"
		"incq %c[rounds](%%rdi)\n\t"
#define VECTORZ(n)                                                                                      \
	"mov $300+" #n ", %%edx\n\tvpcmpneqq " #n "*64+%c[vec](%%rdi), %%zmm" #n ", %%k7\n\t"           \
	"kortestw %%k7, %%k7\n\tjnz 3f\n\t"
		VECTORZ(16) VECTORZ(17) VECTORZ(18) VECTORZ(19) VECTORZ(20) VECTORZ(21) VECTORZ(22)
		VECTORZ(23) VECTORZ(24) VECTORZ(25) VECTORZ(26) VECTORZ(27) VECTORZ(28) VECTORZ(29)
		VECTORZ(30) VECTORZ(31)
#define MASK(n)                                                                                         \
	"mov $400+" #n ", %%edx\n\tkmovq %%k" #n ", %%rsi\n\tcmp " #n "*8+%c[k](%%rdi), %%rsi\n\tjne 3f\n\t"
		MASK(1) MASK(2) MASK(3) MASK(4) MASK(5) MASK(6)
		"cmpq $0, %c[stop](%%rdi)\n\tje 1b\n\t"
		"xor %%edx, %%edx\n\t"
		"3:\n\t"
		"mov %%rdx, %c[bad](%%rdi)\n\t"
		"vzeroupper\n\t"
		:
		: [s] "r"(&s), [vec] "i"(__builtin_offsetof(__typeof__(s), vector)),
		  [k] "i"(__builtin_offsetof(__typeof__(s), masks)),
		  [rounds] "i"(__builtin_offsetof(__typeof__(s), rounds)),
		  [stop] "i"(__builtin_offsetof(__typeof__(s), stop)),
		  [bad] "i"(__builtin_offsetof(__typeof__(s), bad))
		: "rdi", "rdx", "rsi", "memory", "cc", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",
		  "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1",
		  "k2", "k3", "k4", "k5", "k6", "k7");
}

static void *caller(void *arg)
{
	(void)arg;
	long before = *(volatile long *)&s.rounds;
	ready();
	wait_go();
	while (*(volatile long *)&s.rounds == before && !s.bad)
		nap(1);
	atomic_store(&s.stop, 1);
	return NULL;
}

static int has_avx512(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	__builtin_cpu_init();
	CHECK(__builtin_cpu_supports("avx2"), "this test needs a CPU with AVX2");
	int wide = argc > 4 && strcmp(argv[4], "avx512") == 0 && has_avx512();
	for (size_t i = 0; i < 8; i++)
		s.general[i] = mix(i), s.masks[i] = mix(50 + i);
	fill(s.vector, sizeof s.vector, 99);
	for (int i = 0; i < 6; i++)
		s.x87[i] = 1.0 / (i + 3);

	static uint64_t gs_area[2] = {0x6a09e667f3bcc908, 0};
	MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, gs_area));
	unsigned long fs;
	MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
	unsigned mxcsr = 0x1f80 | 0x6000 | 0x8000; // round to zero, flush to zero
	__asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));

	pthread_t t;
	CHECK(pthread_create(&t, NULL, caller, NULL) == 0, "thread");
	if (wide)
		spin_avx512();
	else
		spin_avx();
	CHECK(s.bad == 0, "register check %ld failed after %ld rounds (1..: general, 100..: ymm, 200..: x87, "
	      "300..: zmm, 400..: k)", s.bad, s.rounds);

	unsigned m;
	__asm__ volatile("stmxcsr %0" : "=m"(m));
	CHECK((m & ~0x3fu) == mxcsr, "mxcsr %#x", m);
	uint64_t gs;
	__asm__ volatile("mov %%gs:0, %0" : "=r"(gs));
	CHECK(gs == gs_area[0], "gs base: %#lx", (unsigned long)gs);
	unsigned long fs2;
	MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs2));
	CHECK(fs == fs2, "fs base %#lx, was %#lx", fs2, fs);
	pthread_join(t, NULL);
	pass();
}
