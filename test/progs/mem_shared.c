// Memory shared by two processes: anonymous, /dev/zero, and a memfd that is open, mapped
// shared and mapped private. One segment before, one segment afterwards: what either side
// writes then, the other sees.
#include "prog.h"
#include <stdatomic.h>

#define PAGE 4096UL

struct board {
	_Atomic int turn; // 0: parent, 1: child, 2: end
	_Atomic int up;
};

static void turn(struct board *b, int me)
{
	while (atomic_load(&b->turn) != me)
		nap(1);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct board *b = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *anon = mmap(NULL, 300 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int zero = MUST(open("/dev/zero", O_RDWR));
	char *dz = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
	int mem = MUST(memfd_create("a memfd", MFD_ALLOW_SEALING));
	MUST(ftruncate(mem, 64 * PAGE));
	char *ms = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	fill(ms, 64 * PAGE, 2);
	char *mp = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, mem, 8 * PAGE);
	fill(mp + PAGE, PAGE, 3);
	MUST(fcntl(mem, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK));
	MUST(lseek(mem, 12345, SEEK_SET));
	fill(anon, 20 * PAGE, 1);
	fill(anon + 200 * PAGE, PAGE, 4);
	fill(dz, PAGE, 5);

	pid_t child = MUST(fork());
	if (child == 0) {
		// A second view at another address, made after the fork.
		char *again = mmap(NULL, 64 * PAGE, PROT_READ, MAP_SHARED, mem, 0);
		atomic_store(&b->up, 1);
		turn(b, 1);
		check(anon, 20 * PAGE, 10, "child: shared anonymous");
		check(dz, PAGE, 11, "child: /dev/zero");
		check(ms, PAGE, 12, "child: memfd");
		check(again, PAGE, 12, "child: second view of the memfd");
		char page[PAGE];
		MUST(pread(mem, page, PAGE, 0));
		check(page, PAGE, 12, "child: memfd by read");
		CHECK(lseek(mem, 0, SEEK_CUR) == 777, "child: shared offset of the memfd");
		fill(anon + 30 * PAGE, PAGE, 20);
		fill(ms + 63 * PAGE, PAGE, 21);
		atomic_store(&b->turn, 0);
		turn(b, 2);
		_exit(0);
	}
	while (!atomic_load(&b->up))
		nap(1);
	ready();
	wait_go();

	check(anon, 20 * PAGE, 1, "shared anonymous");
	check(anon + 200 * PAGE, PAGE, 4, "shared anonymous, far page");
	for (size_t i = 0; i < PAGE; i++)
		CHECK(anon[100 * PAGE + i] == 0, "hole in shared anonymous");
	check(dz, PAGE, 5, "/dev/zero");
	check(ms, 64 * PAGE, 2, "memfd");
	check(mp + PAGE, PAGE, 3, "private page of the memfd");
	CHECK(memcmp(mp, ms + 8 * PAGE, PAGE) == 0, "untouched private page of the memfd");
	CHECK(lseek(mem, 0, SEEK_CUR) == 12345, "offset of the memfd");
	CHECK(fcntl(mem, F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SHRINK), "seals %#x", fcntl(mem, F_GET_SEALS));
	CHECK(ftruncate(mem, 65 * PAGE) == -1 && errno == EPERM, "seals do not bind");
	struct stat st;
	MUST(fstat(mem, &st));
	CHECK(st.st_size == (off_t)(64 * PAGE), "size of the memfd %ld", (long)st.st_size);

	fill(anon, 20 * PAGE, 10);
	fill(dz, PAGE, 11);
	fill(ms, PAGE, 12);
	MUST(lseek(mem, 777, SEEK_SET));
	atomic_store(&b->turn, 1);
	int status = 0;
	while (atomic_load(&b->turn) != 0) {
		CHECK(waitpid(child, &status, WNOHANG) == 0, "child ended with %#x", status);
		nap(1);
	}
	check(anon + 30 * PAGE, PAGE, 20, "what the child wrote");
	check(ms + 63 * PAGE, PAGE, 21, "what the child wrote to the memfd");
	atomic_store(&b->turn, 2);
	CHECK(waitpid(child, &status, 0) == child && status == 0, "child ended with %#x", status);
	pass();
}
