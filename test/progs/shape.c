// A program of a given shape, for benchmarks. Arguments after the usual three, all optional:
//
//	mib=N huge=1 random=1   memory, in huge pages, that does not compress
//	dirty=N                 percent of it that a thread writes to each second
//	threads=N procs=N       more threads, more processes that hold 1 MiB each
//	fds=N maps=N            different open files, mappings that cannot be joined
//	units=1                 a thread works, and counts it; RESULT.units has the address of the 64-bit counter
//	fork=1                  writes to RESULT.fork how long fork(2) takes, in ns, and the wait for the child's end
#include "prog.h"
#include <sys/resource.h>

static long get(int argc, char **argv, const char *name)
{
	size_t n = strlen(name);
	for (int i = 4; i < argc; i++)
		if (strncmp(argv[i], name, n) == 0 && argv[i][n] == '=')
			return atol(argv[i] + n + 1);
	return 0;
}

static void *sleeps(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static char *mem;
static size_t size;
static long dirty;

// writes writes to one byte of each page of a part, a hundredth of it every 10 ms.
static void *writes(void *arg)
{
	size_t pages = size / 4096, per = pages * dirty / 10000, at = 0;
	for (;;) {
		for (size_t i = 0; i < per; i++, at = (at + 1) % pages)
			mem[at * 4096 + 17]++;
		nap(10);
	}
	return arg;
}

static volatile uint64_t units;

// works does units of work: some arithmetic, and a write to some place of the memory.
static void *works(void *arg)
{
	uint64_t x = 88172645463325252ull;
	for (;; units++) {
		for (int i = 0; i < 1000; i++)
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		if (size)
			mem[x % (size / 64) * 64 + 33] = x;
	}
	return arg;
}

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct rlimit r;
	MUST(getrlimit(RLIMIT_NOFILE, &r));
	r.rlim_cur = r.rlim_max;
	MUST(setrlimit(RLIMIT_NOFILE, &r));
	size = get(argc, argv, "mib") << 20;
	dirty = get(argc, argv, "dirty");
	if (size) {
		mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(mem != MAP_FAILED, "mmap");
		MUST(madvise(mem, size, get(argc, argv, "huge") ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
		uint64_t x = 88172645463325252ull;
		long random = get(argc, argv, "random");
		for (size_t i = 0; i < size / 8; i++) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			// Every other word is small: as a heap, it can be compressed to about the half.
			((uint64_t *)mem)[i] = random || i % 2 ? x : i % 4096;
		}
	}
	for (long i = get(argc, argv, "maps"); i > 0; i--) {
		char *p = mmap(NULL, 4096, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(p != MAP_FAILED, "mmap");
		if (i % 2)
			*p = 1;
	}
	for (long i = get(argc, argv, "fds"); i > 0; i--)
		MUST(open("/dev/null", O_RDONLY));
	for (long i = get(argc, argv, "procs"); i > 0; i--)
		if (MUST(fork()) == 0) {
			char *p = malloc(1 << 20);
			memset(p, (int)i, 1 << 20);
			sleeps(p);
		}
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	pthread_t t;
	for (long i = get(argc, argv, "threads"); i > 0; i--)
		CHECK(pthread_create(&t, &attr, sleeps, NULL) == 0, "pthread_create");
	if (dirty)
		CHECK(pthread_create(&t, &attr, writes, NULL) == 0, "pthread_create");
	if (get(argc, argv, "units")) {
		char path[4096], text[64];
		snprintf(path, sizeof path, "%s.units", result_path);
		snprintf(text, sizeof text, "%#lx\n", (unsigned long)&units);
		put(path, text);
		CHECK(pthread_create(&t, &attr, works, NULL) == 0, "pthread_create");
	}
	if (get(argc, argv, "fork")) {
		int64_t from = now();
		pid_t pid = MUST(fork());
		if (pid == 0)
			_exit(0);
		char path[4096], text[64];
		snprintf(text, sizeof text, "%ld\n", (long)(now() - from));
		MUST(waitpid(pid, NULL, 0));
		snprintf(path, sizeof path, "%s.fork", result_path);
		put(path, text);
	}
	ready();
	wait_go();
	pass();
}
