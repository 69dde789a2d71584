// A large process: 200 threads, 500 mappings of different rights, 1000 descriptors with gaps
// in their numbers. The counts are arguments.
#include "prog.h"
#include <stdatomic.h>
#include <sys/resource.h>

#define PAGE 4096UL

static _Atomic int up, go;
static _Atomic long work;

static void *thread(void *arg)
{
	long me = (long)arg;
	pid_t tid = gettid();
	volatile long own = me;
	up++;
	while (!go) {
		nap(20 + me % 30);
		work++;
		CHECK(own == me && gettid() == tid, "thread %ld: tid %d was %d", me, gettid(), tid);
	}
	return (void *)(own * 3);
}

static int prot(int i) { return i % 3 == 0 ? PROT_READ : i % 3 == 1 ? PROT_READ | PROT_WRITE : PROT_NONE; }

int main(int argc, char **argv)
{
	begin(argc, argv);
	int threads = argc > 4 ? atoi(argv[4]) : 200, maps = argc > 5 ? atoi(argv[5]) : 500,
	    fds = argc > 6 ? atoi(argv[6]) : 1000;
	MUST(syscall(SYS_close_range, 3, ~0u, 0)); // what the caller left open
	struct rlimit l;
	MUST(getrlimit(RLIMIT_NOFILE, &l));
	l.rlim_cur = fds * 2 + 100;
	MUST(setrlimit(RLIMIT_NOFILE, &l));

	char **map = calloc(maps, sizeof *map);
	for (int i = 0; i < maps; i++) { // neighbours differ in rights, so each is a VMA of its own
		map[i] = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(map[i] != MAP_FAILED, "map %d", i);
		fill(map[i], 3 * PAGE, i);
		MUST(mprotect(map[i], 3 * PAGE, prot(i)));
	}
	int *fd = calloc(fds, sizeof *fd);
	for (int i = 0; i < fds; i++) {
		char name[32];
		snprintf(name, sizeof name, "file%d", i / 4);
		int f = i % 4 == 3 ? MUST(dup(fd[i - 1])) : MUST(open(name, O_RDWR | O_CREAT, 0644));
		fd[i] = 50 + 2 * i;
		MUST(dup3(f, fd[i], i % 2 ? O_CLOEXEC : 0));
		close(f);
		if (i % 4 != 3)
			MUST(lseek(fd[i], i, SEEK_SET));
	}
	pthread_t *t = calloc(threads, sizeof *t);
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	for (long i = 0; i < threads; i++)
		CHECK(pthread_create(&t[i], &attr, thread, (void *)i) == 0, "thread %ld", i);
	while (up < threads)
		nap(1);
	ready();
	wait_go();

	for (int i = 0; i < maps; i++) {
		MUST(mprotect(map[i], 3 * PAGE, PROT_READ));
		check(map[i], 3 * PAGE, i, "mapping");
	}
	for (int i = 0; i < fds; i++) {
		off_t want = i % 4 == 3 ? i - 1 : i, got = lseek(fd[i], 0, SEEK_CUR);
		CHECK(got == want, "fd %d: offset %ld, not %ld", fd[i], (long)got, (long)want);
		CHECK(fcntl(fd[i], F_GETFD) == (i % 2 ? FD_CLOEXEC : 0), "fd %d: close-on-exec", fd[i]);
		CHECK(fcntl(fd[i] + 1, F_GETFD) == -1, "fd %d is open", fd[i] + 1);
		if (i % 4 == 3) {
			MUST(lseek(fd[i], 5000, SEEK_SET));
			CHECK(lseek(fd[i - 1], 0, SEEK_CUR) == 5000, "fd %d does not share its offset", fd[i]);
		}
	}
	long before = work;
	while (work < before + threads)
		nap(5);
	go = 1;
	for (long i = 0; i < threads; i++) {
		void *r;
		CHECK(pthread_join(t[i], &r) == 0 && (long)r == i * 3, "join %ld", i);
	}
	pass();
}
