// Memory that the kernel may drop at any time (MAP_DROPPABLE): what it has not dropped is
// still there, a child gets it empty, and it cannot be made ordinary memory.
#include "prog.h"

#define PAGE 4096UL
#define PAGES 64
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

static int dropped(const char *page)
{
	for (size_t i = 0; i < PAGE; i++)
		if (page[i] != 0)
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *room = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(room != MAP_FAILED, "mmap");
	char *p = mmap(room + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(p != MAP_FAILED, "mmap of droppable memory");
	for (int n = 0; n < PAGES; n++)
		fill(p + n * PAGE, PAGE, n);
	ready();
	wait_go();

	int kept = 0;
	for (int n = 0; n < PAGES; n++)
		if (!dropped(p + n * PAGE)) {
			check(p + n * PAGE, PAGE, n, "droppable memory");
			kept++;
		}
	CHECK(kept > 0, "all of it is gone");
	CHECK(madvise(p, PAGES * PAGE, MADV_DODUMP) == -1 && errno == EINVAL, "it is ordinary memory now");
	pid_t pid = MUST(fork());
	if (pid == 0) {
		for (int n = 0; n < PAGES; n++)
			if (!dropped(p + n * PAGE))
				_exit(10);
		_exit(0);
	}
	int status;
	MUST(waitpid(pid, &status, 0));
	CHECK(status == 0, "child: %#x (10: it has the memory)", status);
	pass();
}
