// mlockall: what is mapped, what will be, and both, with and without MCL_ONFAULT. The flags of the mappings are
// compared from outside.
#include "prog.h"
#include <linux/capability.h>
#include <sys/resource.h>

#define PAGE 4096UL

// locked is VmLck of the process, in KiB.
static long locked(void)
{
	char line[256];
	long kib = -1;
	FILE *f = fopen("/proc/self/status", "r");
	CHECK(f, "open status");
	while (fgets(line, sizeof line, f))
		sscanf(line, "VmLck: %ld", &kib);
	fclose(f);
	CHECK(kib >= 0, "no VmLck");
	return kib;
}

static char *map(size_t pages, int prot)
{
	char *p = mmap(NULL, pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	const char *how = argc > 4 ? argv[4] : "current";
	int limited = strcmp(how, "limited") == 0; // to what it has
	int flags = strcmp(how, "future") == 0 || limited ? MCL_FUTURE
		    : strcmp(how, "all") == 0     ? MCL_CURRENT | MCL_FUTURE
		    : strcmp(how, "onfault") == 0 ? MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT
						  : MCL_CURRENT;
	locked(); // what stdio maps
	char *before = map(9, PROT_READ | PROT_WRITE), *none = map(3, PROT_NONE);
	fill(before, 2 * PAGE, 1);
	MUST(mlockall(flags));
	char *unlocked = before + 4 * PAGE; // in the middle of what may be locked
	MUST(munlock(unlocked, PAGE));
	char *after = map(5, PROT_READ | PROT_WRITE);
	fill(after, PAGE, 2);
	char *file = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), 0);
	CHECK(file != MAP_FAILED, "mmap of a file");
	long was = locked();
	if (flags & MCL_FUTURE)
		CHECK(was >= 24, "%ld KiB are locked", was);
	struct rlimit limit, now;
	MUST(getrlimit(RLIMIT_MEMLOCK, &limit));
	if (limited) {
		limit.rlim_cur = was * 1024 + PAGE;
		struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
		struct __user_cap_data_struct d[2];
		MUST(syscall(SYS_capget, &h, d));
		d[0].effective &= ~(1u << CAP_IPC_LOCK);
		d[0].permitted &= ~(1u << CAP_IPC_LOCK);
		MUST(syscall(SYS_capset, &h, d));
		MUST(setrlimit(RLIMIT_MEMLOCK, &limit));
	}
	ready();
	wait_go();
	if (limited) {
		MUST(getrlimit(RLIMIT_MEMLOCK, &now));
		CHECK(now.rlim_cur == limit.rlim_cur && now.rlim_max == limit.rlim_max, "the limit is %lu", (unsigned long)now.rlim_cur);
		CHECK(mmap(NULL, 256 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EAGAIN, "the limit does not bind");
		limit.rlim_cur = limit.rlim_max;
		MUST(setrlimit(RLIMIT_MEMLOCK, &limit));
	}
	CHECK(locked() == was, "%ld KiB are locked, not %ld", locked(), was);
	check(before, 2 * PAGE, 1, "memory of before");
	check(after, PAGE, 2, "memory of afterwards");
	char *later = map(256, PROT_READ | PROT_WRITE);
	long more = locked() - was;
	CHECK(more == (flags & MCL_FUTURE ? 1024 : 0), "a mapping of 1 MiB locks %ld KiB", more);
	unsigned char there[256];
	MUST(mincore(later, 256 * PAGE, there));
	CHECK((there[200] & 1) == ((flags & (MCL_FUTURE | MCL_ONFAULT)) == MCL_FUTURE), "a new page is there: %d", there[200]);
	MUST(munlockall());
	CHECK(locked() == 0, "%ld KiB are locked after munlockall", locked());
	(void)none;
	pass();
}
