// Files that can be executed and leased while nobody has them open for writing, and files that
// somebody has: both stay what they are. A writer too much makes execve(2) fail with ETXTBSY.
#include "prog.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10
#endif

static struct {
	const char *name;
	int fd, exec, lease, seals;
} all[16];
static int n;

// copy_of fills fd with a program.
static int copy_of(int fd)
{
	static char b[65536];
	int from = MUST(open("/bin/true", O_RDONLY | O_CLOEXEC));
	ssize_t k;
	while ((k = MUST(read(from, b, sizeof b))) > 0)
		CHECK(write(fd, b, k) == k, "write");
	close(from);
	return fd;
}

static int reopened(int fd, int flags)
{
	char p[64];
	snprintf(p, sizeof p, "/proc/self/fd/%d", fd);
	return MUST(open(p, flags));
}

static int memfd(const char *name)
{
	int fd = memfd_create(name, MFD_ALLOW_SEALING | MFD_EXEC);
	if (fd < 0)
		fd = MUST(memfd_create(name, MFD_ALLOW_SEALING));
	return copy_of(fd);
}

// execs returns 0 if fd can be executed, or the errno.
static int execs(int fd)
{
	pid_t p = MUST(fork());
	if (p == 0) {
		char *argv[] = {"true", NULL}, *env[] = {NULL};
		syscall(SYS_execveat, fd, "", argv, env, AT_EMPTY_PATH);
		_exit(errno);
	}
	int st;
	MUST(waitpid(p, &st, 0));
	return WIFEXITED(st) ? WEXITSTATUS(st) : 1000;
}

// leases returns 0 if a lease for reading can be had, or the errno.
static int leases(int fd)
{
	int ro = reopened(fd, O_RDONLY | O_CLOEXEC);
	int e = fcntl(ro, F_SETLEASE, F_RDLCK) ? errno : 0;
	if (e == 0)
		MUST(fcntl(ro, F_SETLEASE, F_UNLCK));
	close(ro);
	return e;
}

static void add(const char *name, int fd)
{
	all[n].name = name, all[n].fd = fd;
	all[n].exec = execs(fd), all[n].lease = leases(fd), all[n].seals = fcntl(fd, F_GET_SEALS);
	n++;
}

// map maps a page of fd for good.
static void map(int fd, int prot, int flags) { CHECK(mmap(NULL, 4096, prot, flags, fd, 0) != MAP_FAILED, "mmap"); }

int main(int argc, char **argv)
{
	begin(argc, argv);
	int fd = memfd("plain");
	add("memfd", fd);
	fd = memfd("mapped");
	map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
	add("memfd that is mapped", fd);
	fd = memfd("private");
	map(fd, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	add("memfd that is mapped privately", fd);
	fd = memfd("reading");
	int ro = reopened(fd, O_RDONLY);
	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	close(fd);
	add("sealed memfd, open for reading", ro);
	fd = memfd("mapped for reading");
	map(fd, PROT_READ, MAP_SHARED);
	ro = reopened(fd, O_RDONLY);
	close(fd);
	add("memfd that is mapped, open for reading", ro);
	fd = memfd("reopened");
	int rw = reopened(fd, O_RDWR);
	close(fd);
	add("memfd that was opened anew for writing", rw);
	fd = memfd("both");
	rw = reopened(fd, O_RDWR);
	add("memfd, open twice", fd);
	fd = memfd("sealed");
	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	add("sealed memfd", fd);

	char path[] = "writers-XXXXXX";
	fd = copy_of(MUST(mkstemp(path)));
	MUST(fchmod(fd, 0755));
	ro = reopened(fd, O_RDONLY);
	close(fd);
	MUST(unlink(path));
	add("deleted file, open for reading", ro);
	char path2[] = "writers-XXXXXX";
	fd = copy_of(MUST(mkstemp(path2)));
	MUST(fchmod(fd, 0755));
	MUST(unlink(path2));
	add("deleted file, open for writing", fd);
	char path3[] = "writers-XXXXXX";
	fd = copy_of(MUST(mkstemp(path3)));
	MUST(fchmod(fd, 0755));
	close(fd);
	fd = MUST(open(path3, O_RDONLY));
	map(fd, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	add("file, open for reading", fd);

	for (int i = 0; i < n; i++)
		CHECK((strstr(all[i].name, "writing") || strstr(all[i].name, "twice") ? ETXTBSY : 0) == all[i].exec, "%s: %d", all[i].name, all[i].exec);
	ready();
	wait_go();
	for (int i = 0; i < n; i++) {
		int fd = all[i].fd, e = execs(fd), l = leases(fd), s = fcntl(fd, F_GET_SEALS);
		CHECK(e == all[i].exec, "%s: execveat gives %d, gave %d", all[i].name, e, all[i].exec);
		CHECK(l == all[i].lease, "%s: F_SETLEASE gives %d, gave %d", all[i].name, l, all[i].lease);
		CHECK(s == all[i].seals, "%s: seals %#x, were %#x", all[i].name, s, all[i].seals);
	}
	unlink(path3);
	pass();
}
