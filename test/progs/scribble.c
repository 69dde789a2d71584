// A process, and a child of it, that change their memory at random all the time, in every way there is, and know what
// must be where: for the tracking of writes between checkpoints. ARG: a seed; one more: without guard regions.
#include "prog.h"
#include <sys/uio.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define PAGE 4096ul
#define PAGES 12288ul // 48 MiB
#define HEAP 512ul

static char *pool, *heap;
static uint32_t *version; // by page of the pool: 0 is zeros
static uint32_t heap_version[HEAP];
static size_t heap_pages;
static char *guarded;
static int no_guards;
static uint64_t state;
static int scratch;

static uint64_t rnd(uint64_t below)
{
	state = mix(state);
	return state % below;
}

// put_page gives a page its pattern.
static void put_page(char *p, uint64_t id, uint32_t v)
{
	uint64_t *w = (uint64_t *)p;
	w[0] = mix(id << 32 | v);
	w[255] = w[0] + 1;
	w[511] = w[0] + 2;
}

static void check_page(char *p, uint64_t id, uint32_t v)
{
	uint64_t *w = (uint64_t *)p, want = v ? mix(id << 32 | v) : 0;
	if (w[0] != want || w[255] != (v ? want + 1 : 0) || w[511] != (v ? want + 2 : 0))
		fail("page %lu at %p is %lx %lx %lx, should be version %u, %lx", (unsigned long)id, p, (unsigned long)w[0],
		     (unsigned long)w[255], (unsigned long)w[511], v, (unsigned long)want);
}

static void clear(size_t at, size_t n) { memset(version + at, 0, n * sizeof *version); }

// set gives n pages the next version of their pattern.
static void set(size_t at, size_t n)
{
	for (size_t i = at; i < at + n; i++) {
		version[i]++;
		put_page(pool + i * PAGE, i, version[i]);
	}
}

// set_by_kernel has the kernel write a page.
static void set_by_kernel(size_t at)
{
	char page[PAGE] = {0};
	version[at]++;
	put_page(page, at, version[at]);
	MUST(pwrite(scratch, page, PAGE, 0));
	MUST(pread(scratch, pool + at * PAGE, PAGE, 0));
}

static void anew(size_t at, size_t n)
{
	CHECK(mmap(pool + at * PAGE, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED, "mmap");
	clear(at, n);
}

// move moves pages elsewhere, over what is there. They are in one mapping: many pages that are mapped anew, or one page. (What is
// mapped while it is tracked does not join what was there before.)
static void move(size_t from, size_t to, size_t n)
{
	if (rnd(2) == 0) {
		n = 1;
	} else {
		anew(from, n);
		set(from, n);
	}
	if (from < to + n && to < from + n)
		return;
	CHECK(mremap(pool + from * PAGE, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, pool + to * PAGE) != MAP_FAILED, "mremap");
	for (size_t i = 0; i < n; i++) {
		check_page(pool + (to + i) * PAGE, from + i, version[from + i]);
		version[to + i] = 0;
	}
	anew(from, n);
	// the pattern names its place: half of them get another one, the rest is given up
	size_t half = (n + 1) / 2;
	set(to, half);
	if (half < n)
		MUST(madvise(pool + (to + half) * PAGE, (n - half) * PAGE, MADV_DONTNEED));
}

static void grow_heap(void)
{
	size_t n = 1 + rnd(8);
	if (heap_pages + n > HEAP)
		return;
	char *p = sbrk(n * PAGE);
	CHECK(p == heap + heap_pages * PAGE, "sbrk gave %p", p);
	for (size_t i = 0; i < n; i++, heap_pages++) {
		heap_version[heap_pages] = 1;
		put_page(heap + heap_pages * PAGE, 1 << 20 | heap_pages, 1);
	}
}

static void shrink_heap(void)
{
	size_t n = rnd(heap_pages + 1);
	MUST(sbrk(-(long)(n * PAGE)));
	heap_pages -= n;
}

static void deep(int n)
{
	volatile char big[3000];
	big[17] = n;
	if (n > 0)
		deep(n - 1);
	big[18] = big[17];
}

static volatile long sink;

static void step(void)
{
	size_t n = 1 + rnd(rnd(8) == 0 ? 700 : 24), at = rnd(PAGES - n);
	switch (rnd(16)) {
	case 0: case 1: case 2: case 3:
		set(at, n);
		break;
	case 4:
		set_by_kernel(at);
		break;
	case 5:
		MUST(madvise(pool + at * PAGE, n * PAGE, MADV_DONTNEED));
		clear(at, n);
		break;
	case 6:
		MUST(munmap(pool + at * PAGE, n * PAGE));
		anew(at, n);
		break;
	case 7:
		move(at, rnd(PAGES - n), n);
		break;
	case 8:
		for (size_t i = at; i < at + n; i++)
			sink += pool[i * PAGE];
		break;
	case 9:
		MUST(mprotect(pool + at * PAGE, n * PAGE, PROT_READ));
		MUST(mprotect(pool + at * PAGE, n * PAGE, PROT_READ | PROT_WRITE));
		break;
	case 10:
		grow_heap();
		break;
	case 11:
		shrink_heap();
		break;
	case 12:
		deep(rnd(60));
		break;
	case 13: { // huge pages come and go
		char *p = (char *)(((uintptr_t)(pool + at * PAGE)) & ~((2ul << 20) - 1));
		if (p >= pool && p + (2 << 20) <= pool + PAGES * PAGE) {
			madvise(p, 2 << 20, rnd(2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
			madvise(p, 2 << 20, 25); // MADV_COLLAPSE
		}
		break;
	}
	case 14:
		if (no_guards)
			break;
		if (guarded) {
			madvise(guarded, PAGE, MADV_GUARD_REMOVE);
			guarded = NULL;
		} else if (madvise(pool + at * PAGE, PAGE, MADV_GUARD_INSTALL) == 0) {
			guarded = pool + at * PAGE;
			clear(at, 1);
			madvise(guarded, PAGE, MADV_GUARD_REMOVE);
			guarded = NULL;
		}
		break;
	case 15: { // a child has all of it for a moment
		pid_t pid = fork();
		CHECK(pid >= 0, "fork");
		if (pid == 0) {
			set(at, n);
			_exit(0);
		}
		set(at, n);
		int st;
		MUST(waitpid(pid, &st, 0));
		break;
	}
	}
}

static void check_all(void)
{
	for (size_t i = 0; i < PAGES; i++)
		check_page(pool + i * PAGE, i, version[i]);
	for (size_t i = 0; i < heap_pages; i++)
		check_page(heap + i * PAGE, 1 << 20 | i, heap_version[i]);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	state = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
	no_guards = argc > 5;
	cpu_set_t one; // or what the kernel keeps in the rseq area changes with the processor, also while it is stopped
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	MUST(sched_setaffinity(0, sizeof one, &one));
	scratch = MUST(memfd_create("scratch", MFD_CLOEXEC));
	version = mmap(NULL, PAGES * sizeof *version, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pool = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(version != MAP_FAILED && pool != MAP_FAILED, "mmap");
	heap = sbrk(0);
	heap = sbrk((PAGE - (uintptr_t)heap % PAGE) % PAGE) + (PAGE - (uintptr_t)heap % PAGE) % PAGE;
	set(0, PAGES / 2);
	pid_t child = MUST(fork());
	if (child == 0) {
		scratch = MUST(memfd_create("scratch", MFD_CLOEXEC));
		state = mix(state + 99);
	} else {
		ready();
	}
	while (!gone_ahead()) {
		for (int i = rnd(12); i > 0; i--)
			step();
		nap(1);
	}
	check_all();
	if (child == 0)
		_exit(0);
	int st;
	MUST(waitpid(child, &st, 0));
	CHECK(st == 0, "the child ended with %#x", st);
	pass();
}
