// A process with memory that it writes to when it is told, for the tracking of writes. It does what the files
// say that appear beside READY, in the order of their numbers, READY.1 and so on, and answers with READY.1.done:
//
//	exec    it execs itself, with the same memory at the same place and other content
//	fork    a child lives on that has all of the memory
//	remap   a part is unmapped and mapped anew
//	write N writes to N pages
#include "prog.h"

#define PAGE 4096ul
#define PAGES 4096ul // 16 MiB
#define AT ((char *)0x200000000000ul)

static void act(char **argv, const char *what, int n)
{
	if (strncmp(what, "exec", 4) == 0) {
		char next[16];
		snprintf(next, sizeof next, "%d", n + 1);
		char *args[] = {argv[0], argv[1], argv[2], argv[3], next, NULL};
		execv("/proc/self/exe", args);
		fail("exec: %s", strerror(errno));
	}
	if (strncmp(what, "fork", 4) == 0) {
		if (MUST(fork()) == 0) {
			MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
			AT[7] = 9;
			for (;;)
				pause();
		}
	}
	if (strncmp(what, "remap", 5) == 0) {
		MUST(munmap(AT + 100 * PAGE, 50 * PAGE));
		CHECK(mmap(AT + 100 * PAGE, 50 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED, "mmap");
		fill(AT + 110 * PAGE, 20 * PAGE, 77);
	}
	if (strncmp(what, "write", 5) == 0)
		for (long i = 0; i < atol(what + 5); i++)
			AT[(i * 37 % PAGES) * PAGE + 99]++;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int n = argc > 4 ? atoi(argv[4]) : 1;
	cpu_set_t one; // or what the kernel keeps in the rseq area changes with the processor
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	MUST(sched_setaffinity(0, sizeof one, &one));
	CHECK(mmap(AT, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == AT, "mmap");
	fill(AT, PAGES * PAGE, n);
	char path[4096], what[64];
	if (n > 1) {
		snprintf(path, sizeof path, "%s.%d.done", ready_path, n - 1);
		put(path, "done\n");
	} else {
		ready();
	}
	for (; !gone_ahead(); nap(5)) {
		snprintf(path, sizeof path, "%s.%d", ready_path, n);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		ssize_t got = read(fd, what, sizeof what - 1);
		close(fd);
		what[got < 0 ? 0 : got] = 0;
		act(argv, what, n);
		strcat(path, ".done");
		put(path, "done\n");
		n++;
	}
	pass();
}
