// Measures how long it is stopped: it reads the clock without a pause and remembers the
// longest gap. Argument 4 is the MiB it holds, "small" as argument 5 forbids huge pages. The
// result is "ok LONGEST_NS".
#include "prog.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	size_t n = (argc > 4 ? strtoul(argv[4], NULL, 10) : 16) << 20;
	char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	MUST(madvise(p, n, argc > 5 && strcmp(argv[5], "small") == 0 ? MADV_NOHUGEPAGE : MADV_HUGEPAGE));
	fill(p, n, 1);
	ready();
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	int64_t last = t.tv_sec * 1000000000ll + t.tv_nsec, worst = 0;
	for (uint64_t i = 0;; i++) {
		clock_gettime(CLOCK_MONOTONIC, &t);
		int64_t now = t.tv_sec * 1000000000ll + t.tv_nsec;
		if (now - last > worst)
			worst = now - last;
		last = now;
		if (i % (1 << 16) == 0) {
			if (gone_ahead())
				break;
			clock_gettime(CLOCK_MONOTONIC, &t);
			last = t.tv_sec * 1000000000ll + t.tv_nsec;
		}
	}
	char b[64];
	snprintf(b, sizeof b, "ok %ld\n", (long)worst);
	put(result_path, b);
	return 0;
}
