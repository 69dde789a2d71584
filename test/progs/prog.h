// The contract of a test program, in C.
//
//	NAME READY RESULT GO [ARG…]
//
// A program sets up the state it is about and calls ready(). It then lives until the file GO
// appears; a checkpoint, a kill and any number of restores may happen in between. After that
// it asserts on itself and ends with pass() or fail(): RESULT holds "ok" or "fail: why" and
// the exit status is 0 or 1. Run without ckptfs it must pass too: that proves the program.
//
// Files are used instead of signals and of a terminal, because signals and descriptors are
// often the very state under test. GO holds "restored" when the program went through a
// restore, so that what only then may happen (EINTR from a sleep) is told from what never may.
#ifndef PROG_H
#define PROG_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *ready_path, *result_path, *go_path;

// put writes text to path so that a reader sees all of it or no file at all.
static void put(const char *path, const char *text)
{
	char tmp[4096];
	snprintf(tmp, sizeof tmp, "%s.%d.tmp", path, (int)getpid());
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0)
		_exit(3);
	ssize_t want = (ssize_t)strlen(text);
	if (write(fd, text, want) != want || close(fd) != 0 || rename(tmp, path) != 0)
		_exit(3);
}

// fail reports why and ends the process. The first report of a tree stays.
__attribute__((format(printf, 1, 2), noreturn, unused)) static void fail(const char *fmt, ...)
{
	char why[1024] = "fail: ";
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(why + 6, sizeof why - 8, fmt, ap);
	va_end(ap);
	strcat(why, "\n");
	if (access(result_path, F_OK) != 0)
		put(result_path, why);
	_exit(1);
}

__attribute__((noreturn, unused)) static void pass(void)
{
	put(result_path, "ok\n");
	_exit(0);
}

// CHECK fails with the expression, its place, errno and a formatted remark.
#define CHECK(cond, fmt, ...)                                                                  \
	do {                                                                                   \
		if (!(cond))                                                                   \
			fail("%s:%d: %s (errno %d): " fmt, __FILE__, __LINE__, #cond, errno,   \
			     ##__VA_ARGS__);                                                   \
	} while (0)

// MUST is CHECK for calls that set up: -1 is the failure.
#define MUST(call)                                                                             \
	({                                                                                     \
		__auto_type must_ = (call);                                                    \
		if ((long)must_ == -1)                                                         \
			fail("%s:%d: %s: %s", __FILE__, __LINE__, #call, strerror(errno));     \
		must_;                                                                         \
	})

__attribute__((unused)) static void begin(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: %s READY RESULT GO [ARG...]\n", argv[0]);
		_exit(2);
	}
	ready_path = argv[1];
	result_path = argv[2];
	go_path = argv[3];
}

__attribute__((unused)) static void ready(void) { put(ready_path, "ready\n"); }

__attribute__((unused)) static int gone_ahead(void) { return access(go_path, F_OK) == 0; }

// nap sleeps for about ms milliseconds, whatever a checkpoint does to the sleep.
__attribute__((unused)) static void nap(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
	nanosleep(&ts, NULL);
}

__attribute__((unused)) static void wait_go(void)
{
	while (!gone_ahead())
		nap(10);
}

// restored tells, after wait_go, whether this process went through a restore.
__attribute__((unused)) static int restored(void)
{
	char b[16] = "";
	int fd = open(go_path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0, "open %s", go_path);
	ssize_t n = read(fd, b, sizeof b - 1);
	close(fd);
	return n >= 8 && memcmp(b, "restored", 8) == 0;
}

// mix is a cheap hash that gives every word of a region its own value.
__attribute__((unused)) static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

// fill and check give n bytes at p a pattern that depends on seed and place.
__attribute__((unused)) static void fill(void *p, size_t n, uint64_t seed)
{
	uint64_t *w = p;
	for (size_t i = 0; i < n / 8; i++)
		w[i] = mix(seed ^ i);
}

__attribute__((unused)) static void check(const void *p, size_t n, uint64_t seed, const char *what)
{
	const uint64_t *w = p;
	for (size_t i = 0; i < n / 8; i++)
		if (w[i] != mix(seed ^ i))
			fail("%s: byte %zu of %zu at %p is %#lx, not %#lx", what, i * 8, n, (void *)&w[i],
			     (unsigned long)w[i], (unsigned long)mix(seed ^ i));
}

#endif
