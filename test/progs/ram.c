// A process with much memory: argument 4 is MiB, "small" as argument 5 forbids huge pages. A
// writer touches pages all the time and every page is checked at the end.
#include "prog.h"
#include <stdatomic.h>

#define PAGE 4096UL

static uint64_t *mem;
static size_t pages;
static _Atomic int stop;
static size_t step;

// page writes generation g of page i. The first word is the generation, the last one proves
// that the page is whole.
static void page(size_t i, uint64_t g)
{
	uint64_t *p = mem + i * (PAGE / 8);
	p[0] = g;
	p[1] = mix(i);
	p[255] = mix(i ^ g);
	p[511] = mix(i + g);
}

static void *writer(void *arg)
{
	(void)arg;
	for (uint64_t g = 1; !stop; g++)
		for (size_t i = g % step; i < pages && !stop; i += step) {
			page(i, g);
			if (i % 64 == 0)
				nap(1);
		}
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	size_t mib = argc > 4 ? strtoul(argv[4], NULL, 10) : 64;
	pages = mib << 8;
	step = 37;
	mem = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mem != MAP_FAILED, "%zu MiB", mib);
	MUST(madvise(mem, pages * PAGE, argc > 5 && strcmp(argv[5], "small") == 0 ? MADV_NOHUGEPAGE : MADV_HUGEPAGE));
	for (size_t i = 0; i < pages; i++)
		page(i, 0);
	pthread_t t;
	CHECK(pthread_create(&t, NULL, writer, NULL) == 0, "thread");
	ready();
	wait_go();
	stop = 1;
	pthread_join(t, NULL);
	for (size_t i = 0; i < pages; i++) {
		uint64_t *p = mem + i * (PAGE / 8), g = p[0];
		CHECK(p[1] == mix(i) && p[255] == mix(i ^ g) && p[511] == mix(i + g), "page %zu of generation %lu is torn", i,
		      (unsigned long)g);
	}
	pass();
}
