// Memory that is used in every way while it still comes: each of some threads has areas whose
// content it knows, and reads, writes, hands to system calls, throws away, unmaps, moves, grows,
// shrinks, protects and forks at random, as fast as it can from the moment of GO on. A page must always
// be what was written last, or zero where it was thrown away.
//
//	lazymem READY RESULT GO MIB OPS SEED
//
// With OPS 0 the memory is only compared, in order.
#include "prog.h"
#include <sys/uio.h>

#define PAGE 4096UL
#define WORDS (PAGE / 8)
#define THREADS 3
#define AREAS 64

// area is some memory; seed[i] tells what page i holds, 0: zeros.
struct area {
	char *at;
	long pages;
	uint64_t *seed;
};

struct worker {
	struct area areas[AREAS];
	int n, children, pipe[2];
	uint64_t rnd, next;
	long ops;
	pthread_t thread;
};

static struct worker workers[THREADS];
static const char *doing[THREADS];

static uint64_t rnd(struct worker *w) { return w->rnd = mix(w->rnd); }
static long below(struct worker *w, long n) { return (long)(rnd(w) % (uint64_t)n); }

static void put_page(char *p, uint64_t seed)
{
	fill(p, PAGE, seed);
}

static void check_words(struct worker *w, const void *b, uint64_t seed, const char *p)
{
	const uint64_t *v = b;
	for (unsigned long i = 0; i < WORDS; i++) {
		uint64_t want = seed ? mix(seed ^ i) : 0;
		if (v[i] != want)
			fail("pid %d: word %lu of the page at %p is %#lx, not %#lx (seed %#lx), during %s", (int)getpid(), i, p,
			     (unsigned long)v[i], (unsigned long)want, (unsigned long)seed, doing[w - workers]);
	}
}

static char *map_at(char *at, long pages)
{
	char *p = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
	CHECK(p != MAP_FAILED && (!at || p == at), "mmap %ld pages at %p", pages, at);
	return p;
}

static void *table(long pages)
{
	void *p = mmap(NULL, pages * 8 + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

static void check_area(struct worker *w, struct area *a)
{
	for (long i = 0; i < a->pages; i++)
		check_words(w, a->at + i * PAGE, a->seed[i], a->at + i * PAGE);
}

// as_child is what a child does: it has what its parent's thread had, and what it does is its own affair.
static void as_child(struct worker *w)
{
	doing[w - workers] = "child";
	for (int k = 0; k < 100; k++) {
		struct area *a = &w->areas[below(w, w->n)];
		long i = below(w, a->pages);
		char *p = a->at + i * PAGE;
		check_words(w, p, a->seed[i], p);
		if (k % 3 == 1) {
			MUST(madvise(p, PAGE, MADV_DONTNEED));
			a->seed[i] = 0;
		} else if (k % 3 == 2) {
			put_page(p, a->seed[i] = ++w->next);
		}
	}
	for (int k = 0; k < 3; k++)
		check_area(w, &w->areas[below(w, w->n)]);
	_exit(0);
}

static void reap(struct worker *w, int leave)
{
	for (; w->children > leave; w->children--) {
		int st;
		pid_t pid = MUST(waitpid(-1, &st, __WNOTHREAD));
		if (st != 0)
			fail("child %d ended with status %#x", pid, st);
	}
}

static void do_fork(struct worker *w)
{
	reap(w, 2);
	pid_t pid = MUST(fork());
	if (pid == 0)
		as_child(w);
	w->children++;
}

static void op(struct worker *w)
{
	char buf[PAGE];
	struct area *a = &w->areas[below(w, w->n)];
	long i = below(w, a->pages), n = 1 + below(w, a->pages - i < 64 ? a->pages - i : 64);
	char *p = a->at + i * PAGE;
	uint64_t *seed = a->seed + i;
	const char **what = &doing[w - workers];
	switch (below(w, 100)) {
	default:
		*what = "read";
		check_words(w, p, *seed, p);
		break;
	case 40 ... 54:
		*what = "write";
		put_page(p, *seed = ++w->next);
		break;
	case 55 ... 59:
		*what = "write of a word";
		((uint64_t *)p)[0] = *seed ? mix(*seed ^ 0) : 0;
		check_words(w, p, *seed, p);
		break;
	case 60 ... 66:
		*what = "read(2)";
		put_page(buf, *seed = ++w->next);
		CHECK(write(w->pipe[1], buf, PAGE) == PAGE, "write to the pipe");
		CHECK(read(w->pipe[0], p, PAGE) == PAGE, "read into %p", p);
		check_words(w, p, *seed, p);
		break;
	case 67 ... 73:
		*what = "write(2)";
		CHECK(write(w->pipe[1], p, PAGE) == PAGE, "write from %p", p);
		CHECK(read(w->pipe[0], buf, PAGE) == PAGE, "read from the pipe");
		check_words(w, buf, *seed, p);
		break;
	case 74 ... 79:
		*what = "MADV_DONTNEED";
		MUST(madvise(p, n * PAGE, MADV_DONTNEED));
		memset(seed, 0, n * 8);
		check_words(w, p, 0, p);
		break;
	case 80 ... 81:
		*what = "mmap over it";
		map_at(p, n);
		memset(seed, 0, n * 8);
		check_words(w, p + (n - 1) * PAGE, 0, p);
		break;
	case 82 ... 83:
		*what = "munmap";
		n = 2 * (1 + below(w, 8));
		if (a->pages <= 2 * n)
			break;
		MUST(munmap(a->at + (a->pages - n) * PAGE, n * PAGE));
		a->pages -= n;
		break;
	case 84 ... 87: // all of it goes elsewhere
		*what = "mremap of all";
		if (a->pages > 64 && below(w, 16) > 0)
			break;
		p = mmap(NULL, a->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(p != MAP_FAILED, "mmap");
		for (long k = 0; k < a->pages; k++) // page by page: it need not be one mapping
			CHECK(mremap(a->at + k * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + k * PAGE) != MAP_FAILED, "mremap of page %ld", k);
		a->at = p;
		check_words(w, p + i * PAGE, *seed, p + i * PAGE);
		break;
	case 88 ... 89: // one page goes to where another one was
		*what = "mremap of a page";
		if (a->pages % 2)
			break;
		CHECK(mremap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, a->at + (i ^ 1) * PAGE) != MAP_FAILED, "mremap of %p", p);
		a->seed[i ^ 1] = *seed;
		*seed = 0;
		check_words(w, p, 0, p);
		check_words(w, a->at + (i ^ 1) * PAGE, a->seed[i ^ 1], a->at + (i ^ 1) * PAGE);
		break;
	case 90 ... 91:
		*what = "MREMAP_DONTUNMAP";
		if (w->n == AREAS)
			break;
		char *to = mremap(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
		CHECK(to != MAP_FAILED, "mremap of %p", p);
		struct area *b = &w->areas[w->n++];
		*b = (struct area){to, 1, table(1)};
		b->seed[0] = *seed;
		*seed = 0;
		check_words(w, p, 0, p);
		check_words(w, b->at, b->seed[0], b->at);
		break;
	case 92 ... 94:
		*what = "mprotect";
		MUST(mprotect(p, n * PAGE, PROT_NONE));
		MUST(mprotect(p, n * PAGE, PROT_READ));
		check_words(w, p, *seed, p);
		MUST(mprotect(p, n * PAGE, PROT_READ | PROT_WRITE));
		break;
	case 95 ... 97:
		*what = "process_vm_readv";
		struct iovec l = {buf, PAGE}, r = {p, PAGE};
		CHECK(process_vm_readv(getpid(), &l, 1, &r, 1, 0) == PAGE, "process_vm_readv of %p", p);
		check_words(w, buf, *seed, p);
		break;
	case 98:
		*what = "fork";
		if (below(w, 5) == 0)
			do_fork(w);
		break;
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;
	for (long k = 0; k < w->ops; k++)
		op(w);
	doing[w - workers] = "the end";
	for (int i = 0; i < w->n; i++)
		check_area(w, &w->areas[i]);
	reap(w, 0);
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	CHECK(argc == 7, "arguments");
	long pages = atol(argv[4]) * 256 / THREADS;
	for (int t = 0; t < THREADS; t++) {
		struct worker *w = &workers[t];
		w->rnd = mix(strtoull(argv[6], NULL, 10) + t);
		w->next = (uint64_t)(t + 1) << 32;
		w->ops = atol(argv[5]);
		MUST(pipe(w->pipe));
		for (long left = pages; left > 0 && w->n < AREAS / 2; w->n++) {
			struct area *a = &w->areas[w->n];
			a->pages = 2 * (1 + below(w, pages / 16));
			a->at = map_at(NULL, a->pages);
			a->seed = table(a->pages);
			if (w->n % 4 == 0) // else as the kernel does it
				MUST(madvise(a->at, a->pages * PAGE, MADV_HUGEPAGE));
			for (long i = 0; i < a->pages; i++)
				if (w->n % 4 != 1 || below(w, 3) > 0) // one in four has holes
					put_page(a->at + i * PAGE, a->seed[i] = ++w->next);
			left -= a->pages;
		}
	}
	ready();
	wait_go();
	for (int t = 0; t < THREADS; t++)
		CHECK(pthread_create(&workers[t].thread, NULL, work, &workers[t]) == 0, "pthread_create");
	for (int t = 0; t < THREADS; t++)
		CHECK(pthread_join(workers[t].thread, NULL) == 0, "pthread_join");
	pass();
}
