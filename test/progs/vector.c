// Vector state that has to be asked for: vector amx holds eight AMX tiles, vector pkru rights of
// protection keys that are not the kernel's own. On a CPU without them it has nothing to hold.
#include "prog.h"
#include <asm/prctl.h>

#define XTILEDATA 18
#define REQ_XCOMP_PERM 0x1023

static uint32_t rdpkru(void)
{
	uint32_t a;
	__asm__ volatile(".byte 0x0f,0x01,0xee" : "=a"(a) : "c"(0) : "edx"); // rdpkru
	return a;
}

static void wrpkru(uint32_t a)
{
	__asm__ volatile(".byte 0x0f,0x01,0xef" : : "a"(a), "c"(0), "d"(0)); // wrpkru
}

static void rights(void)
{
	if (pkey_alloc(0, 0) < 0) { // this CPU has no protection keys
		ready();
		wait_go();
		pass();
	}
	uint32_t want = 0x55555554u ^ 3u << 10; // key 5 may be used
	wrpkru(want);
	ready();
	wait_go();
	CHECK(rdpkru() == want, "rights %#x, not %#x", rdpkru(), want);
	pass();
}

static struct {
	unsigned char config[64], in[8][1024], out[8][1024];
} t __attribute__((aligned(64)));

#define ALL(op, m)                                                                                      \
	op(0, m[0]) op(1, m[1]) op(2, m[2]) op(3, m[3]) op(4, m[4]) op(5, m[5]) op(6, m[6]) op(7, m[7])
#define LOAD(n, p) __asm__ volatile("tileloadd (%0,%1,1),%%tmm" #n : : "r"(p), "r"(64L) : "memory");
#define STORE(n, p) __asm__ volatile("tilestored %%tmm" #n ",(%0,%1,1)" : : "r"(p), "r"(64L) : "memory");

__attribute__((target("amx-tile"))) static void tiles(void)
{
	if (syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILEDATA) != 0) { // this CPU has no AMX
		ready();
		wait_go();
		pass();
	}
	t.config[0] = 1; // palette
	for (int i = 0; i < 8; i++)
		t.config[16 + 2 * i] = 64, t.config[48 + i] = 16; // bytes a row, rows
	fill(t.in, sizeof t.in, 18);
	__asm__ volatile("ldtilecfg (%0)" : : "r"(t.config) : "memory");
	ALL(LOAD, t.in)
	ready();
	wait_go();
	ALL(STORE, t.out)
	check(t.out, sizeof t.out, 18, "AMX tiles");
	pass();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 4 && strcmp(argv[4], "amx") == 0)
		tiles();
	rights();
}
