// Shared memory of huge pages: anonymous memory that a child shares, a memfd (MFD_HUGETLB) that is
// open, sealed and mapped both shared and private, and one that is only open.
#include "prog.h"

#define HUGE (2UL << 20)

static char *map(size_t pages, int flags, int fd, off_t off)
{
	char *p = mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, flags, fd, off);
	if (p == MAP_FAILED)
		fail("mmap of huge pages: %s; vm.nr_hugepages must be 12 or more", strerror(errno));
	return p;
}

static int memfd(const char *name, size_t pages)
{
	int fd = MUST(memfd_create(name, MFD_HUGETLB | MFD_ALLOW_SEALING));
	MUST(ftruncate(fd, (off_t)(pages * HUGE)));
	return fd;
}

static size_t allocated(int fd)
{
	struct stat st;
	MUST(fstat(fd, &st));
	return (size_t)st.st_blocks * 512 / HUGE;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *anon = map(2, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	fill(anon + HUGE, HUGE, 1);

	int fd = memfd("huge", 3);
	char *a = map(3, MAP_SHARED | MAP_NORESERVE, fd, 0);
	fill(a, HUGE, 2);
	fill(a + HUGE, HUGE, 3);
	char *second = map(1, MAP_SHARED, fd, HUGE);
	char *priv = map(2, MAP_PRIVATE, fd, 0);
	fill(priv, HUGE, 4); // a page of its own; the other one is the memfd's
	CHECK(((volatile char *)priv)[HUGE] == a[HUGE], "private mapping");
	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	MUST(fchmod(fd, 0640));

	int only = memfd("open", 2);
	char *p = map(1, MAP_SHARED, only, HUGE);
	fill(p, HUGE, 5);
	MUST(munmap(p, HUGE));
	MUST(lseek(only, 4096, SEEK_SET));

	int go[2];
	MUST(pipe(go));
	pid_t child = MUST(fork());
	if (child == 0) {
		char c;
		if (read(go[0], &c, 1) != 1 || anon[HUGE] != 42)
			_exit(10);
		anon[HUGE + 1] = 43;
		a[HUGE + 1] = 44;
		_exit(0);
	}
	ready();
	wait_go();

	check(anon + HUGE, HUGE, 1, "anonymous");
	check(a, HUGE, 2, "memfd, first page");
	check(a + HUGE, HUGE, 3, "memfd, second page");
	check(second, HUGE, 3, "memfd, second mapping");
	check(priv, HUGE, 4, "private page");
	check(priv + HUGE, HUGE, 3, "page of the memfd in the private mapping");
	CHECK(allocated(fd) == 2 && allocated(only) == 1, "allocated: %zu and %zu huge pages", allocated(fd), allocated(only));
	CHECK(fcntl(fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW), "seals %#x", fcntl(fd, F_GET_SEALS));
	struct stat st;
	MUST(fstat(fd, &st));
	CHECK((st.st_mode & 0777) == 0640 && st.st_size == 3 * HUGE, "mode %o size %ld", st.st_mode, (long)st.st_size);
	p = map(1, MAP_SHARED, only, HUGE);
	check(p, HUGE, 5, "memfd that was only open");
	CHECK(lseek(only, 0, SEEK_CUR) == 4096, "offset");

	anon[HUGE] = 42;
	MUST(write(go[1], "x", 1));
	int status;
	MUST(waitpid(child, &status, 0));
	CHECK(status == 0, "child: %#x (10: it does not share the memory)", status);
	CHECK(anon[HUGE + 1] == 43 && a[HUGE + 1] == 44 && second[1] == 44 && priv[HUGE + 1] == 44, "what the child wrote");
	for (size_t i = 0; i < HUGE; i += 512)
		CHECK(anon[i] == 0 && a[2 * HUGE + i] == 0, "untouched page at %zu", i);
	pass();
}
