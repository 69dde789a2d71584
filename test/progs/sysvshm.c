// Shared memory of System V: two processes have segments attached, at different addresses, for reading,
// in part, protected and moved; one is marked for removal, one locked, one of another user,
// one attached by nobody.
#include "prog.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define MINE 5 // segments

static int id[MINE];

struct board {
	_Atomic int turn; // 0: parent, 1: child, 2: end
	_Atomic int up;
};

static struct shmid_ds stat_of(int n)
{
	struct shmid_ds d;
	MUST(shmctl(id[n], IPC_STAT, &d));
	return d;
}

static void *attach(int n, void *at, int flags)
{
	void *p = shmat(id[n], at, flags);
	CHECK(p != (void *)-1, "attach segment %d at %p", n, at);
	return p;
}

static void turn(struct board *b, int me)
{
	while (b->turn != me)
		nap(1);
}

// expect checks what does not depend on what is in a segment.
static void expect(int n, struct shmid_ds *was)
{
	struct shmid_ds is = stat_of(n);
	CHECK(is.shm_perm.__key == was->shm_perm.__key, "segment %d: key %#x, was %#x", n, is.shm_perm.__key, was->shm_perm.__key);
	CHECK(is.shm_perm.mode == was->shm_perm.mode, "segment %d: mode %#o, was %#o", n, is.shm_perm.mode, was->shm_perm.mode);
	CHECK(is.shm_perm.uid == was->shm_perm.uid && is.shm_perm.gid == was->shm_perm.gid, "segment %d: owner", n);
	CHECK(is.shm_perm.cuid == was->shm_perm.cuid && is.shm_perm.cgid == was->shm_perm.cgid, "segment %d: creator %d:%d, was %d:%d", n,
	      is.shm_perm.cuid, is.shm_perm.cgid, was->shm_perm.cuid, was->shm_perm.cgid);
	CHECK(is.shm_segsz == was->shm_segsz, "segment %d: size", n);
	CHECK(is.shm_cpid == was->shm_cpid, "segment %d: made by %d, was %d", n, is.shm_cpid, was->shm_cpid);
	CHECK(is.shm_nattch == was->shm_nattch, "segment %d: attached %lu times, was %lu", n, is.shm_nattch, was->shm_nattch);
	if (restored() && is.shm_nattch > 0)
		CHECK(is.shm_lpid == was->shm_lpid, "segment %d: used last by %d, was %d", n, is.shm_lpid, was->shm_lpid);
}

// huge has a segment of huge pages, attached whole and in part.
static void huge(void)
{
	const size_t page = 2 << 20;
	id[0] = shmget(IPC_PRIVATE, 3 * page - 5000, SHM_HUGETLB | 0600);
	CHECK(id[0] >= 0, "shmget; vm.nr_hugepages must be 3 or more");
	char *whole = attach(0, NULL, 0), *part = attach(0, NULL, SHM_RDONLY);
	fill(whole + 100, 8000, 1);
	fill(whole + 2 * page, page, 2);
	MUST(munmap(part, page));
	struct shmid_ds was = stat_of(0);
	ready();
	wait_go();
	expect(0, &was);
	check(whole + 100, 8000, 1, "the first huge page");
	check(part + 2 * page, page, 2, "the last huge page");
	whole[page] = 'x';
	CHECK(part[page] == 'x', "the part does not follow");
	MUST(shmctl(id[0], IPC_RMID, NULL));
	pass();
}

// orphan has a segment that a child has made which is gone.
static void orphan(int base, int detached)
{
	pid_t maker = MUST(fork());
	if (maker == 0) {
		MUST(shmget(base, PAGE, IPC_CREAT | IPC_EXCL | 0600));
		_exit(0);
	}
	CHECK(waitpid(maker, NULL, 0) == maker, "wait for the maker");
	id[0] = MUST(shmget(base, 0, 0));
	char *p = attach(0, NULL, 0);
	fill(p, PAGE, 1);
	if (detached)
		MUST(shmdt(p));
	struct shmid_ds was = stat_of(0);
	CHECK(was.shm_cpid == maker, "made by %d", was.shm_cpid);
	ready();
	wait_go();
	if (!detached) {
		expect(0, &was);
		check(p, PAGE, 1, "the segment");
	}
	MUST(shmctl(id[0], IPC_RMID, NULL));
	pass();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int base = 0x5c000000 | getpid() << 4;
	if (argc > 4 && strcmp(argv[4], "huge") == 0)
		huge();
	if (argc > 4)
		orphan(base, strcmp(argv[4], "used") == 0);
	struct board *b = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	id[0] = MUST(shmget(base, 20 * PAGE + 56, IPC_CREAT | IPC_EXCL | 0640));
	id[1] = MUST(shmget(IPC_PRIVATE, 8 * PAGE, 0600));
	id[2] = MUST(shmget(base + 2, 56, IPC_CREAT | 0)); // root needs no permission
	MUST(setegid(12));
	MUST(seteuid(33));
	id[3] = MUST(shmget(base + 3, 5 * PAGE, IPC_CREAT | 0666));
	MUST(seteuid(0));
	MUST(setegid(0));
	id[4] = MUST(shmget(base + 4, 3 * PAGE, IPC_CREAT | 0600));

	char *whole = attach(0, NULL, 0);
	fill(whole, 7 * PAGE, 1);
	fill(whole + 20 * PAGE, PAGE, 2); // also what is behind its end
	char *part = attach(0, NULL, 0);
	MUST(munmap(part, 2 * PAGE));
	MUST(munmap(part + 4 * PAGE, 2 * PAGE)); // 2, 3 and 6 to 20 are left
	MUST(mprotect(part + 8 * PAGE, PAGE, PROT_READ));
	char *moved = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *gone = attach(1, NULL, 0);
	fill(gone, 8 * PAGE, 3);
	CHECK(mremap(gone, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved + PAGE) == moved + PAGE, "mremap");
	MUST(shmctl(id[1], IPC_RMID, NULL));
	char *small = attach(2, NULL, 0);
	strcpy(small, "small");
	strcpy(small + 1000, "behind its end");
	char *ro = attach(3, NULL, SHM_RDONLY);
	struct shmid_ds d = stat_of(3);
	d.shm_perm.uid = 1000;
	d.shm_perm.gid = 1001;
	d.shm_perm.mode = 0604;
	MUST(shmctl(id[3], IPC_SET, &d));
	MUST(shmctl(id[3], SHM_LOCK, NULL));
	char *loose = attach(4, NULL, 0);
	fill(loose, PAGE, 4);
	MUST(shmdt(loose));

	pid_t child = MUST(fork());
	if (child == 0) {
		MUST(shmdt(whole));
		char *own = attach(0, NULL, 0); // at another address
		char *rw = attach(3, NULL, 0);
		fill(rw, 5 * PAGE, 5);
		b->up = 1;
		turn(b, 1);
		check(own, 7 * PAGE, 10, "child: what the parent wrote");
		fill(own + 10 * PAGE, PAGE, 11);
		fill(rw + PAGE, PAGE, 12);
		b->turn = 0;
		turn(b, 2);
		_exit(0);
	}
	while (!b->up)
		nap(1);
	struct shmid_ds was[MINE];
	for (int i = 0; i < MINE; i++)
		was[i] = stat_of(i);
	CHECK(was[0].shm_lpid == child, "the child was the last");
	ready();
	wait_go();

	for (int i = 0; i < MINE; i++)
		expect(i, &was[i]);
	CHECK(stat_of(1).shm_perm.mode & SHM_DEST, "not marked for removal");
	CHECK(stat_of(3).shm_perm.mode & SHM_LOCKED, "not locked");
	check(whole, 7 * PAGE, 1, "the whole segment");
	for (size_t i = 7 * PAGE; i < 20 * PAGE; i++)
		CHECK(whole[i] == 0, "hole at %zu", i);
	check(whole + 20 * PAGE, PAGE, 2, "its end");
	CHECK(memcmp(part + 2 * PAGE, whole + 2 * PAGE, 2 * PAGE) == 0 && memcmp(part + 6 * PAGE, whole + 6 * PAGE, 14 * PAGE) == 0, "parts");
	check(moved + PAGE, 2 * PAGE, 3, "the part that was moved");
	for (size_t i = 2 * PAGE / 8; i < PAGE; i++)
		CHECK(((uint64_t *)gone)[i] == mix(3 ^ i), "the part that was not moved, word %zu", i);
	CHECK(memcmp(small, "small", 6) == 0 && strcmp(small + 1000, "behind its end") == 0, "the small one");
	check(ro, 5 * PAGE, 5, "the one that is read");
	loose = attach(4, NULL, 0);
	check(loose, PAGE, 4, "the one that nobody had attached");
	MUST(shmdt(loose));

	fill(whole, 7 * PAGE, 10);
	CHECK(memcmp(part + 2 * PAGE, whole + 2 * PAGE, 2 * PAGE) == 0, "parts do not follow");
	b->turn = 1;
	int status = 0;
	while (b->turn != 0) {
		CHECK(waitpid(child, &status, WNOHANG) == 0, "child ended with %#x", status);
		nap(1);
	}
	check(whole + 10 * PAGE, PAGE, 11, "what the child wrote");
	check(part + 10 * PAGE, PAGE, 11, "what the child wrote, in a part");
	check(ro + PAGE, PAGE, 12, "what the child wrote where we read");
	b->turn = 2;
	CHECK(waitpid(child, &status, 0) == child && status == 0, "child ended with %#x", status);

	unsigned long n = stat_of(0).shm_nattch;
	MUST(shmdt(part));
	CHECK(stat_of(0).shm_nattch == n - 4, "shmdt of what is in parts: %lu of %lu left", stat_of(0).shm_nattch, n);
	MUST(shmdt(whole));
	CHECK(stat_of(0).shm_nattch == 0, "somebody has it attached");
	MUST(shmdt(gone));
	CHECK(stat_of(1).shm_nattch == 1, "the moved part is there");
	MUST(munmap(moved, 8 * PAGE));
	CHECK(shmctl(id[1], IPC_STAT, &d) == -1 && errno == EINVAL, "it was marked for removal, and is there");
	for (int i = 0; i < MINE; i++)
		if (i != 1)
			MUST(shmctl(id[i], IPC_RMID, NULL));
	pass();
}
