// Files and directories of /proc about processes and threads of the tree, held open: of itself, a
// child, a thread, a zombie, and of a process that was reaped.
#include "prog.h"
#include <dirent.h>

static volatile pid_t tid;
static volatile uint64_t word = 0x1234567890abcdefull;

static void *thread(void *arg)
{
	(void)arg;
	tid = gettid();
	for (;;)
		pause();
	return NULL;
}

static int of(pid_t pid, const char *name, int flags)
{
	char path[128];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	return MUST(open(path, flags | O_CLOEXEC));
}

static const char *text(int fd)
{
	static char b[1 << 16];
	ssize_t n = MUST(pread(fd, b, sizeof b - 1, 0));
	b[n] = 0;
	return b;
}

static void link_is(int fd, pid_t pid, const char *name)
{
	char path[64], want[128], got[128];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	snprintf(want, sizeof want, "/proc/%d/%s", pid, name);
	got[MUST(readlink(path, got, sizeof got - 1))] = 0;
	CHECK(strcmp(got, want) == 0, "%s, not %s", got, want);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	pthread_t t;
	CHECK(pthread_create(&t, NULL, thread, NULL) == 0, "thread");
	while (tid == 0)
		nap(1);
	pid_t child = MUST(fork());
	if (child == 0)
		for (;;)
			pause();
	pid_t zombie = MUST(fork());
	if (zombie == 0)
		_exit(3);
	siginfo_t si;
	MUST(waitid(P_PID, zombie, &si, WEXITED | WNOWAIT));
	pid_t gone = MUST(fork());
	if (gone == 0)
		for (;;)
			pause();

	int maps = of(getpid(), "maps", O_RDONLY | O_NONBLOCK), mem = of(getpid(), "mem", O_RDWR), comm = of(getpid(), "comm", O_RDWR);
	int env = of(getpid(), "environ", O_RDONLY), task = of(getpid(), "task", O_RDONLY), self = MUST(open("/proc/self", O_RDONLY | O_DIRECTORY));
	char name[64];
	snprintf(name, sizeof name, "task/%d/stat", tid);
	int th = of(getpid(), name, O_RDONLY), kid_mem = of(child, "mem", O_RDWR), kid_fd = of(child, "fd", O_RDONLY);
	int stat = of(child, "stat", O_RDONLY), z = of(zombie, "status", O_RDONLY);
	int dead = of(gone, "stat", O_RDONLY), dead_fd = of(gone, "fd", O_RDONLY), dead_dir = of(gone, "", O_RDONLY), dead_mem = of(gone, "mem", O_RDWR);
	MUST(kill(gone, SIGKILL));
	MUST(waitpid(gone, NULL, 0));
	char b[64];
	MUST(lseek(mem, (off_t)(uintptr_t)&word, SEEK_SET));
	CHECK(read(stat, b, 4) == 4, "stat");
	CHECK(syscall(SYS_getdents64, task, b, 64) > 0, "task");
	off_t task_pos = MUST(lseek(task, 0, SEEK_CUR));

	ready();
	wait_go();

	uint64_t got;
	CHECK(lseek(mem, 0, SEEK_CUR) == (off_t)(uintptr_t)&word && read(mem, &got, 8) == 8 && got == word, "mem gives %#lx", (unsigned long)got);
	got = 77;
	CHECK(pwrite(mem, &got, 8, (off_t)(uintptr_t)&word) == 8 && word == 77, "mem cannot be written");
	CHECK(pread(kid_mem, &got, 8, (off_t)(uintptr_t)&word) == 8 && got == 0x1234567890abcdefull, "the child has %#lx", (unsigned long)got);
	CHECK(strstr(text(maps), "[stack]") && strstr(text(maps), "procfiles"), "maps: %s", text(maps));
	link_is(maps, getpid(), "maps");
	CHECK((fcntl(maps, F_GETFL) & ~0100000) == O_NONBLOCK && fcntl(maps, F_GETFD) == FD_CLOEXEC, "flags");
	MUST(write(comm, "renamed", 7));
	CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "renamed") == 0, "comm %s", name);
	CHECK(strchr(text(env), '='), "environ");
	CHECK(lseek(task, 0, SEEK_CUR) == task_pos, "position %ld in task, was %ld", (long)lseek(task, 0, SEEK_CUR), (long)task_pos);
	CHECK(faccessat(self, "status", R_OK, 0) == 0, "status below /proc/self");
	CHECK(atoi(text(th)) == tid && atoi(text(stat)) == child, "stat");
	CHECK(lseek(stat, 0, SEEK_CUR) == 4, "position %ld", (long)lseek(stat, 0, SEEK_CUR));
	CHECK(read(stat, b, 2) == 2, "stat");
	link_is(kid_fd, child, "fd");
	snprintf(name, sizeof name, "%d", kid_fd);
	CHECK(faccessat(kid_fd, "1", F_OK, AT_SYMLINK_NOFOLLOW) == 0 && faccessat(kid_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == -1, "descriptors of the child");
	CHECK(strstr(text(z), "Z (zombie)"), "zombie: %s", text(z));
	CHECK(read(dead, b, 9) == -1 && errno == ESRCH, "stat of the dead");
	CHECK(syscall(SYS_getdents64, dead_fd, b, 64) == -1 && errno == ENOENT, "descriptors of the dead");
	CHECK(syscall(SYS_getdents64, dead_dir, b, 64) == -1 && errno == ENOENT && openat(dead_dir, "stat", O_RDONLY) == -1, "directory of the dead");
	CHECK(read(dead_mem, b, 9) == 0, "memory of the dead");
	link_is(dead, gone, "stat");
	MUST(kill(child, SIGKILL));
	MUST(waitpid(child, NULL, 0));
	pass();
}
