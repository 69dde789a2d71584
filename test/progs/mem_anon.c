// Private anonymous memory of every sort: small and huge pages, holes, heap, a stack that
// grows, memory without access rights but with data, code that was written at run time.
#include "prog.h"

#define PAGE 4096UL
#define HUGE (2UL << 20)

static char *anon(size_t n, int prot, int flags)
{
	char *p = mmap(NULL, n, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	CHECK(p != MAP_FAILED, "mmap %zu", n);
	return p;
}

static int depth(int n)
{
	volatile char room[4096];
	room[0] = (char)n;
	return n == 0 ? room[0] : depth(n - 1) + room[0] - (char)n;
}

int main(int argc, char **argv)
{
	begin(argc, argv);

	char *small = anon(1 << 20, PROT_READ | PROT_WRITE, 0);
	MUST(madvise(small, 1 << 20, MADV_NOHUGEPAGE));
	fill(small, 1 << 20, 1);

	char *holes = anon(256 * PAGE, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	MUST(madvise(holes, 256 * PAGE, MADV_NOHUGEPAGE));
	for (int i = 0; i < 256; i += 5)
		fill(holes + i * PAGE, PAGE, 100 + i);

	char *room = anon(4 * HUGE, PROT_READ | PROT_WRITE, 0);
	char *huge = (char *)(((uintptr_t)room + HUGE - 1) & ~(HUGE - 1));
	MUST(madvise(huge, 2 * HUGE, MADV_HUGEPAGE));
	fill(huge, 2 * HUGE, 2);

	char *old_brk = MUST(sbrk(0));
	size_t pad = (8 - (uintptr_t)old_brk % 8) % 8;
	char *heap = (char *)MUST(sbrk(96 * PAGE + pad)) + pad;
	fill(heap, 96 * PAGE, 3);
	char *brk_end = MUST(sbrk(0));

	char *none = anon(8 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill(none, 8 * PAGE, 4);
	MUST(mprotect(none, 8 * PAGE, PROT_NONE));

	char *ro = anon(8 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill(ro, 8 * PAGE, 5);
	MUST(mprotect(ro, 8 * PAGE, PROT_READ));

	// mov $42,%eax; ret
	static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
	char *exec = anon(PAGE, PROT_READ | PROT_WRITE, 0);
	memcpy(exec, code, sizeof code);
	MUST(mprotect(exec, PAGE, PROT_READ | PROT_EXEC));

	// A hole is left below, so that it can grow there.
	char *below = anon(1024 * PAGE, PROT_NONE, 0);
	MUST(munmap(below, 1024 * PAGE));
	char *grows = mmap(below + 1000 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(grows == below + 1000 * PAGE, "MAP_GROWSDOWN");
	fill(grows, 16 * PAGE, 6);

	char *one = anon(PAGE, PROT_READ | PROT_WRITE, 0); // read only: the shared zero page
	CHECK(one[17] == 0, "fresh memory");

	ready();
	wait_go();

	check(small, 1 << 20, 1, "4K pages");
	for (int i = 0; i < 256; i++) {
		if (i % 5 == 0)
			check(holes + i * PAGE, PAGE, 100 + i, "page between holes");
		else
			for (size_t j = 0; j < PAGE; j++)
				CHECK(holes[i * PAGE + j] == 0, "hole %d byte %zu", i, j);
	}
	check(huge, 2 * HUGE, 2, "huge pages");
	check(heap, 96 * PAGE, 3, "heap");
	CHECK(sbrk(0) == brk_end, "brk moved from %p", brk_end);
	CHECK(sbrk(PAGE) == brk_end, "brk does not go on where it was");
	brk_end[0] = 1;

	MUST(mprotect(none, 8 * PAGE, PROT_READ));
	check(none, 8 * PAGE, 4, "PROT_NONE");
	check(ro, 8 * PAGE, 5, "PROT_READ");
	CHECK(((int (*)(void))exec)() == 42, "code written at run time");
	check(grows, 16 * PAGE, 6, "MAP_GROWSDOWN");
	grows[-(long)PAGE] = 1; // the kernel lets it grow by touching the page below
	CHECK(one[17] == 0, "zero page");
	one[17] = 1;
	CHECK(depth(200) == 0, "the main stack does not grow");
	pass();
}
