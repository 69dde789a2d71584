// Three processes with private memory of every sort, at the same addresses and with other content. Each time the file
// "scribble" is in the working directory all check their memory and write over it for ever: what a next restore from
// the same image finds must be what it was. A process that is no part of the tree is left behind, which does so too.
#include "prog.h"

#define PAGE 4096UL
#define HUGE (2UL << 20)
#define PROCESSES 3

static struct area {
	const char *what;
	size_t size;
	int prot, advice, sparse;
	char *at;
} areas[] = {
	{"small pages", 24 << 20, PROT_READ | PROT_WRITE, 0, 0, 0},
	{"no huge pages", 8 << 20, PROT_READ | PROT_WRITE, MADV_NOHUGEPAGE, 0, 0},
	{"huge pages", 8 << 20, PROT_READ | PROT_WRITE, MADV_HUGEPAGE, 0, 0},
	{"some pages", 8 << 20, PROT_READ | PROT_WRITE, MADV_NOHUGEPAGE, 1, 0},
	{"read only", 4 << 20, PROT_READ, 0, 0, 0},
	{"no access", 4 << 20, PROT_NONE, 0, 0, 0},
	{"executable", 4 << 20, PROT_READ | PROT_WRITE | PROT_EXEC, 0, 0, 0},
	{"not for children", 4 << 20, PROT_READ | PROT_WRITE, MADV_DONTFORK, 0, 0},
	{"wiped for children", 4 << 20, PROT_READ | PROT_WRITE, MADV_WIPEONFORK, 0, 0},
};
#define AREAS (int)(sizeof areas / sizeof *areas)

static volatile struct shared {
	int prepared, checked, scribbling;
} *all;

static int me; // which of the processes

// has says which pages of a sparse area have content: also a whole huge page and the half of one.
static int has(const struct area *a, size_t page)
{
	if (!a->sparse)
		return 1;
	return page * PAGE < HUGE || (page * PAGE >= 2 * HUGE && page * PAGE < 5 * HUGE / 2) || page % 5 == 0;
}

static uint64_t seed(int area, int round) { return 1000003ull * round + 1009 * me + area; }

// each does something with every page of all areas that has content: fill, or check.
static void writes(int round)
{
	for (int i = 0; i < AREAS; i++) {
		struct area *a = &areas[i];
		for (size_t p = 0; p < a->size / PAGE; p++)
			if (has(a, p))
				fill(a->at + p * PAGE, PAGE, seed(i, round) + (p << 32));
	}
}

static void checks(int round)
{
	for (int i = 0; i < AREAS; i++) {
		struct area *a = &areas[i];
		for (size_t p = 0; p < a->size / PAGE; p++) {
			if (has(a, p)) {
				check(a->at + p * PAGE, PAGE, seed(i, round) + (p << 32), a->what);
				continue;
			}
			for (size_t b = 0; b < PAGE; b++)
				CHECK(a->at[p * PAGE + b] == 0, "%s: hole %zu byte %zu", a->what, p, b);
		}
	}
}

// rights sets those that the areas have while the program waits, or all.
static void rights(int open)
{
	for (int i = 0; i < AREAS; i++)
		MUST(mprotect(areas[i].at, areas[i].size, areas[i].prot | (open ? PROT_READ | PROT_WRITE : 0)));
}

static void prepare(void)
{
	for (int i = 0; i < AREAS; i++) {
		struct area *a = &areas[i];
		// Its address is that of the others, which it has from its parent but for what that keeps.
		if (!a->at || a->advice == MADV_DONTFORK) {
			int fixed = a->at ? MAP_FIXED_NOREPLACE : 0;
			char *p = MUST(mmap(a->at, a->size + (a->at ? 0 : PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0));
			if (!a->at)
				MUST(munmap(p + a->size, PAGE));
			a->at = p;
			if (a->advice)
				MUST(madvise(a->at, a->size, a->advice));
		}
		MUST(mprotect(a->at, a->size, a->prot | PROT_READ | PROT_WRITE));
	}
	writes(0);
	rights(0);
	__atomic_add_fetch(&all->prepared, 1, __ATOMIC_SEQ_CST);
}

static void count(volatile int *n, int want)
{
	__atomic_add_fetch(n, 1, __ATOMIC_SEQ_CST);
	while (*n < want)
		nap(1);
}

// scribble never returns.
__attribute__((noreturn)) static void scribble(void)
{
	rights(1);
	checks(0);
	if (me == 0 && fork() == 0) { // the one that is left behind
		setsid();
		// What is not handed on or wiped it has to make anew.
		areas[7].at = MUST(mmap(NULL, areas[7].size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		char text[32];
		snprintf(text, sizeof text, "%d\n", (int)getpid());
		put("left", text);
		me = 17;
	}
	for (int round = 1;; round++) {
		writes(round);
		checks(round);
		if (round == 1 && me < PROCESSES) {
			count(&all->scribbling, PROCESSES);
			if (me == 0)
				put("scribbling", "");
		}
	}
}

static void ending(void)
{
	rights(1);
	checks(0);
	writes(1000);
	checks(1000);
	for (int i = 0; i < AREAS; i++) { // anonymous memory comes back empty
		struct area *a = &areas[i];
		MUST(madvise(a->at + PAGE, HUGE, MADV_DONTNEED));
		for (size_t b = 0; b < HUGE; b++)
			CHECK(a->at[PAGE + b] == 0, "%s: byte %zu after MADV_DONTNEED", a->what, b);
		MUST(madvise(a->at + HUGE, HUGE, MADV_FREE));
	}
	// A child of its own gets the memory that it is to get.
	pid_t k = MUST(fork());
	if (k == 0) {
		unsigned char in;
		CHECK(mincore(areas[7].at, PAGE, &in) == -1 && errno == ENOMEM, "MADV_DONTFORK");
		CHECK(areas[8].at[HUGE + 2 * PAGE] == 0 && areas[8].at[0] == 0, "MADV_WIPEONFORK");
		uint64_t first = mix((seed(0, 1000) + (5ull << 32 << 9)) ^ 0);
		CHECK(*(uint64_t *)(areas[0].at + 5 * PAGE * 512) == first, "a child has other memory");
		_exit(0);
	}
	int st;
	CHECK(waitpid(k, &st, 0) == k && st == 0, "child of process %d: %#x", me, st);
}

static void waits(void)
{
	while (!gone_ahead()) {
		if (access("scribble", F_OK) == 0)
			scribble();
		nap(10);
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	all = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	prepare();
	pid_t child = 0;
	for (me = 1; me < PROCESSES; me++) { // each is the child of the one before
		child = MUST(fork());
		if (child != 0)
			break;
		prepare();
	}
	me--;
	if (child == 0)
		me = PROCESSES - 1;
	if (me == 0) {
		while (all->prepared < PROCESSES)
			nap(1);
		ready();
	}
	waits();
	ending();
	if (child) {
		int st;
		CHECK(waitpid(child, &st, 0) == child && st == 0, "process below %d: %#x", me, st);
	}
	if (me > 0)
		_exit(0);
	pass();
}
