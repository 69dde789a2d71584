// Guard pages of madvise(2) in memory of every kind that takes them, and hundreds of them in one
// mapping: touching one is a SIGSEGV, what lies around them is whole, children have them, and
// they can be taken away.
#include "prog.h"
#include <setjmp.h>

#define PAGE 4096UL
#define PAGES 16
#define MANY 2000
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static sigjmp_buf back;

static void on_segv(int sig) { siglongjmp(back, sig); }

static int faults(volatile char *p)
{
	if (sigsetjmp(back, 1))
		return 1;
	(void)*p;
	return 0;
}

static int guarded(int page) { return page == 0 || page == 3 || page == 4 || page == 9 || page == PAGES - 1; }

static void install(char *p)
{
	MUST(madvise(p, PAGE, MADV_GUARD_INSTALL));
	MUST(madvise(p + 3 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL));
	MUST(madvise(p + 9 * PAGE, PAGE, MADV_GUARD_INSTALL));
	MUST(madvise(p + (PAGES - 1) * PAGE, PAGE, MADV_GUARD_INSTALL));
}

static int file(void)
{
	static char b[PAGES * PAGE];
	fill(b, sizeof b, 7);
	int fd = MUST(open("guarded", O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(write(fd, b, sizeof b));
	return fd;
}

// The pages hold their own number all over; every third was never touched.
static int touched(int page) { return page % 3 != 2; }

static void verify(char *p, int i, const char *when)
{
	for (int n = 0; n < PAGES; n++) {
		CHECK(faults(p + n * PAGE) == guarded(n), "%s: page %d of region %d: guard page or not", when, n, i);
		if (!guarded(n) && touched(n))
			check(p + n * PAGE, PAGE, i * 100 + n, when);
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	CHECK(signal(SIGSEGV, on_segv) != SIG_ERR, "signal");
	int fd = file(), mem = MUST(memfd_create("guarded", 0));
	MUST(ftruncate(mem, 2 * PAGES * PAGE));
	struct {
		int prot, flags, fd;
		off_t off;
	} kinds[] = {
		{PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0},
		{PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0}, // locked afterwards
		{PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0}, // MADV_DONTFORK
		{PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0}, // MADV_WIPEONFORK
		{PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0}, // read-only afterwards
		{PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0},
		{PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0}, // MADV_DONTFORK
		{PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0},
		{PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0},
		{PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0},
		{PROT_READ | PROT_WRITE, MAP_PRIVATE, mem, PAGES * PAGE},
	};
	enum { N = sizeof kinds / sizeof *kinds, LOCKED = 1, DONTFORK = 2, WIPED = 3, READONLY = 4, SHARED_DONTFORK = 6, PRIVATE_FILE = 7 };
	char *p[N];
	for (int i = 0; i < N; i++) {
		// Space around keeps neighbours from being merged into one VMA.
		char *room = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(room != MAP_FAILED, "mmap");
		p[i] = mmap(room + PAGE, PAGES * PAGE, kinds[i].prot, kinds[i].flags | MAP_FIXED, kinds[i].fd, kinds[i].off);
		CHECK(p[i] != MAP_FAILED, "mmap of kind %d", i);
		for (int n = 0; n < PAGES; n++)
			if (touched(n))
				fill(p[i] + n * PAGE, PAGE, (i == PRIVATE_FILE + 1 ? PRIVATE_FILE : i) * 100 + n);
		install(p[i]);
	}
	// Both mappings of the file see what was written to the shared one; the private one has pages of its own.
	for (int n = 0; n < PAGES; n++)
		if (!guarded(n) && touched(n))
			fill(p[PRIVATE_FILE + 1] + n * PAGE, PAGE, (PRIVATE_FILE + 1) * 100 + n);
	mlock(p[LOCKED], PAGES * PAGE); // ENOMEM tells of the guard pages; the memory is locked
	MUST(madvise(p[DONTFORK], PAGES * PAGE, MADV_DONTFORK));
	MUST(madvise(p[SHARED_DONTFORK], PAGES * PAGE, MADV_DONTFORK));
	MUST(madvise(p[WIPED], PAGES * PAGE, MADV_WIPEONFORK));
	MUST(mprotect(p[READONLY], PAGES * PAGE, PROT_READ));
	// Every second page of a mapping of many.
	char *many = mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(many != MAP_FAILED, "mmap");
	memset(many, 5, MANY * PAGE);
	for (int n = 0; n < MANY; n += 2)
		MUST(madvise(many + n * PAGE, PAGE, MADV_GUARD_INSTALL));
	mlock(many, MANY * PAGE);
	for (int i = 0; i < N; i++)
		verify(p[i], i, "before");
	ready();
	wait_go();

	for (int i = 0; i < N; i++)
		verify(p[i], i, "after");
	for (int n = 0; n < MANY; n++)
		CHECK(faults(many + n * PAGE) == (n % 2 == 0) && (n % 2 == 0 || many[n * PAGE + 9] == 5), "page %d of many", n);
	pid_t pid = MUST(fork());
	if (pid == 0) {
		for (int i = 0; i < N; i++)
			if (i != DONTFORK && i != SHARED_DONTFORK && i != WIPED)
				verify(p[i], i, "in a child");
		_exit(0);
	}
	int status;
	MUST(waitpid(pid, &status, 0));
	CHECK(status == 0, "child: %#x", status);
	for (int i = 0; i < N; i++) {
		if (i == LOCKED)
			MUST(munlock(p[i], PAGES * PAGE));
		MUST(madvise(p[i], PAGES * PAGE, MADV_GUARD_REMOVE));
		for (int n = 0; n < PAGES; n++)
			CHECK(!faults(p[i] + n * PAGE), "page %d of region %d is still guarded", n, i);
	}
	CHECK(p[0][3 * PAGE] == 0, "a page that was guarded holds something");
	pass();
}
