// Memory with advice, locks and names. The VmFlags themselves are compared from outside;
// here stands what a program can see: what a fork takes along, what is locked.
#include "prog.h"

#define PAGE 4096UL
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static char *region(uint64_t seed)
{
	// Guard pages keep neighbours from being merged into one VMA.
	char *p = mmap(NULL, 10 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	MUST(mprotect(p + PAGE, 8 * PAGE, PROT_READ | PROT_WRITE));
	fill(p + PAGE, 8 * PAGE, seed);
	return p + PAGE;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	static const int advice[] = {MADV_DONTFORK, MADV_WIPEONFORK, MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTDUMP,
				     MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE};
	enum { N = sizeof advice / sizeof *advice };
	char *p[N];
	for (int i = 0; i < N; i++) {
		p[i] = region(i);
		if (madvise(p[i], 8 * PAGE, advice[i]) != 0)
			CHECK(errno == EINVAL, "madvise %d", advice[i]); // a kernel without THP or KSM
	}
	char *locked = region(100), *onfault = region(101), *named = region(102);
	MUST(mlock(locked, 8 * PAGE));
	MUST(mlock2(onfault, 8 * PAGE, MLOCK_ONFAULT));
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, 8 * PAGE, "name of memory");

	// Huge pages by mmap, where this machine has any to give.
	char *tlb = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (tlb != MAP_FAILED)
		fill(tlb, 4 << 20, 200);

	ready();
	wait_go();

	for (int i = 0; i < N; i++)
		check(p[i], 8 * PAGE, i, "memory with advice");
	check(locked, 8 * PAGE, 100, "locked");
	check(onfault, 8 * PAGE, 101, "locked on fault");
	check(named, 8 * PAGE, 102, "named");
	if (tlb != MAP_FAILED)
		check(tlb, 4 << 20, 200, "hugetlb");

	pid_t pid = MUST(fork());
	if (pid == 0) {
		for (size_t i = 0; i < 8 * PAGE; i++)
			if (p[1][i] != 0)
				_exit(10); // not wiped
		unsigned char vec[8];
		if (mincore(p[0], 8 * PAGE, vec) == 0)
			_exit(11); // was taken along
		_exit(0);
	}
	int status;
	MUST(waitpid(pid, &status, 0));
	CHECK(status == 0, "fork: status %#x (10: MADV_WIPEONFORK, 11: MADV_DONTFORK is lost)", status);
	pass();
}
