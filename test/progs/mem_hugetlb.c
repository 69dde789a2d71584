// Private memory of hugetlb pages (MAP_HUGETLB): one page written before, one left alone, and
// writes that go on while a checkpoint reads.
#include "prog.h"

#define HUGE (2UL << 20)

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *p = mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap of huge pages: %s; vm.nr_hugepages must be 3 or more", strerror(errno));
	fill(p, HUGE, 11);
	fill(p + 2 * HUGE, HUGE, 12);
	ready();
	while (!gone_ahead()) {
		p[HUGE - 1] ^= 1;
		p[HUGE - 1] ^= 1;
		nap(1);
	}
	check(p, HUGE, 11, "first page");
	check(p + 2 * HUGE, HUGE, 12, "third page");
	for (size_t i = 0; i < HUGE; i += 512)
		CHECK(p[HUGE + i] == 0, "second page at %zu", i);
	pass();
}
