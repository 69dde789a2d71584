// Guard regions (MADV_GUARD_INSTALL) in memory of every kind, in a parent and a child, and
// MAP_DROPPABLE memory. A kernel without them has nothing to keep.
#include "prog.h"
#include <setjmp.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

static sigjmp_buf back;

static void on_segv(int sig)
{
	(void)sig;
	siglongjmp(back, 1);
}

static int faults(volatile char *p)
{
	if (sigsetjmp(back, 1))
		return 1;
	(void)*p;
	return 0;
}

enum { ANON, SHARED, FILE_PRIVATE, FILE_SHARED, LOCKED, EDGE, N };
static char *m[N];
static int has[N];

// look checks eight pages, of which 2, 3 and 6 are guards.
static void look(const char *who)
{
	for (int i = 0; i < N; i++) {
		if (!has[i])
			continue;
		for (int k = 0; k < 8; k++) {
			int guard = k == 2 || k == 3 || k == 6;
			CHECK(faults(m[i] + k * PAGE) == guard, "%s: mapping %d page %d: guard %d", who, i, k, guard);
			if (!guard)
				CHECK(m[i][k * PAGE + 5] == (char)(10 * i + k), "%s: mapping %d page %d holds %d", who, i, k, m[i][k * PAGE + 5]);
		}
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct sigaction sa = {.sa_handler = on_segv, .sa_flags = SA_NODEFER};
	MUST(sigaction(SIGSEGV, &sa, NULL));
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644));
	int fd2 = MUST(open("file2", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(ftruncate(fd, 8 * PAGE));
	MUST(ftruncate(fd2, 8 * PAGE));
	m[ANON] = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m[SHARED] = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	m[FILE_PRIVATE] = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	m[FILE_SHARED] = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd2, 0);
	m[LOCKED] = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m[EDGE] = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < N; i++) {
		CHECK(m[i] != MAP_FAILED, "mmap %d", i);
		for (int k = 0; k < 8; k++)
			m[i][k * PAGE + 5] = 10 * i + k;
		has[i] = madvise(m[i] + 2 * PAGE, 2 * PAGE, GUARD_INSTALL) == 0 && madvise(m[i] + 6 * PAGE, PAGE, GUARD_INSTALL) == 0;
	}
	mlock(m[LOCKED], 8 * PAGE); // fails at the guards, and locks all the same
	MUST(madvise(m[EDGE], 8 * PAGE, MADV_DONTFORK));
	char *drop = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
	if (drop != MAP_FAILED) {
		memset(drop, 3, 8 * PAGE);
		madvise(drop + PAGE, PAGE, GUARD_INSTALL);
	}
	look("before");
	pid_t child = MUST(fork());
	if (child == 0) {
		has[EDGE] = 0; // not handed down
		look("child, before");
		wait_go();
		look("child");
		_exit(0);
	}
	ready();
	wait_go();
	look("after");
	int st;
	MUST(waitpid(child, &st, 0));
	CHECK(st == 0, "child: %#x", st);
	if (has[ANON]) {
		MUST(madvise(m[ANON], 8 * PAGE, GUARD_REMOVE));
		for (int k = 0; k < 8; k++)
			CHECK(!faults(m[ANON] + k * PAGE), "page %d is a guard still", k);
	}
	if (drop != MAP_FAILED) {
		CHECK(has[ANON] == faults(drop + PAGE), "guard in droppable memory");
		for (int k = 0; k < 8; k += 2)
			CHECK(drop[k * PAGE] == 3 || drop[k * PAGE] == 0, "droppable memory holds %d", drop[k * PAGE]);
		pid_t p = MUST(fork());
		if (p == 0)
			_exit(drop[0] != 0); // a fork does not get it
		MUST(waitpid(p, &st, 0));
		CHECK(st == 0, "droppable memory was handed down");
	}
	pass();
}
