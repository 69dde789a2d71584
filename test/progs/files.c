// Open files: what dup and fork share moves together afterwards; numbers, close-on-exec,
// status flags and offsets; directories, O_PATH, appending, pipes with content and capacity,
// fifos, eventfds, epoll sets, the memory devices.
#include "prog.h"
#include <dirent.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int at(int fd, int num)
{
	MUST(dup3(fd, num, O_CLOEXEC));
	close(fd);
	return num;
}

static off_t pos(int fd) { return lseek(fd, 0, SEEK_CUR); }

static char text[100];

static int file(const char *name, int flags)
{
	int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(write(fd, text, sizeof text));
	close(fd);
	return MUST(open(name, flags));
}

static void regular(int after)
{
	static int plain, twin, other, app, wo, high, link, path;
	if (!after) {
		plain = file("plain", O_RDWR);
		twin = MUST(dup(plain));
		other = MUST(open("plain", O_RDONLY));
		MUST(lseek(twin, 33, SEEK_SET));
		MUST(lseek(other, 11, SEEK_SET));
		app = file("append", O_WRONLY | O_APPEND | O_NONBLOCK);
		MUST(lseek(app, 5, SEEK_SET));
		wo = file("sync", O_WRONLY | O_DSYNC | O_NOATIME);
		high = at(file("high", O_RDONLY | O_NOFOLLOW), 777);
		MUST(lseek(high, 1LL << 40, SEEK_SET));
		MUST(symlink("plain", "link"));
		link = MUST(open("link", O_PATH | O_NOFOLLOW));
		path = MUST(open("plain", O_PATH | O_CLOEXEC));
		return;
	}
	CHECK(pos(plain) == 33 && pos(twin) == 33 && pos(other) == 11, "offsets %ld %ld %ld", pos(plain), pos(twin), pos(other));
	MUST(lseek(plain, 50, SEEK_SET));
	CHECK(pos(twin) == 50 && pos(other) == 11, "dup shares the offset, open does not");
	CHECK(fcntl(plain, F_GETFD) == 0 && fcntl(high, F_GETFD) == FD_CLOEXEC && fcntl(path, F_GETFD) == FD_CLOEXEC, "cloexec");
	CHECK((fcntl(app, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == (O_WRONLY | O_APPEND | O_NONBLOCK), "flags %#o", fcntl(app, F_GETFL));
	CHECK((fcntl(wo, F_GETFL) & (O_ACCMODE | O_DSYNC | O_NOATIME)) == (O_WRONLY | O_DSYNC | O_NOATIME), "flags %#o", fcntl(wo, F_GETFL));
	CHECK(pos(app) == 5 && pos(wo) == 0 && pos(high) == 1LL << 40, "offsets %ld %ld %ld", pos(app), pos(wo), pos(high));
	struct stat a, b;
	MUST(fstat(app, &a));
	MUST(write(app, "z", 1));
	MUST(fstat(app, &b));
	CHECK(b.st_size == a.st_size + 1, "append");
	char got[16];
	CHECK(readlinkat(link, "", got, sizeof got) == 5 && memcmp(got, "plain", 5) == 0, "O_PATH of a symlink");
	CHECK(read(path, got, 1) == -1 && errno == EBADF, "O_PATH reads");
	int again = openat(AT_FDCWD, "/proc/self/fd/777", O_RDONLY);
	CHECK(again >= 0, "magic link");
	close(again);
}

static void directory(int after)
{
	static int dir, num;
	static DIR *d;
	static char first[3][256];
	if (!after) {
		MUST(mkdir("dir", 0755));
		for (int i = 0; i < 40; i++) {
			char name[32];
			snprintf(name, sizeof name, "dir/%d", i);
			close(MUST(open(name, O_CREAT | O_WRONLY, 0644)));
		}
		dir = MUST(open("dir", O_RDONLY | O_DIRECTORY));
		d = fdopendir(MUST(open("dir", O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
		for (int i = 0; i < 3; i++)
			strcpy(first[i], readdir(d)->d_name);
		num = 3;
		return;
	}
	for (struct dirent *e; (e = readdir(d)); num++)
		for (int i = 0; i < 3; i++)
			CHECK(strcmp(e->d_name, first[i]) != 0, "%s comes twice", e->d_name);
	CHECK(num == 42, "%d names", num);
	CHECK(faccessat(dir, "7", F_OK, 0) == 0, "a path below an open directory");
}

static void pipes(int after)
{
	static int p[2], full[2], eof[2], fifo_r, fifo_w, fifo_rw;
	static size_t content;
	char b[4096];
	if (!after) {
		MUST(pipe2(p, O_NONBLOCK));
		MUST(fcntl(p[1], F_SETPIPE_SZ, 16 << 10));
		MUST(write(p[1], text, sizeof text));
		MUST(write(p[1], "tail", 4));
		MUST(pipe2(full, O_NONBLOCK | O_CLOEXEC));
		fill(b, sizeof b, 5);
		while (write(full[1], b, sizeof b) == sizeof b)
			content++;
		MUST(pipe(eof));
		MUST(write(eof[1], "last", 4));
		close(eof[1]);
		MUST(mkfifo("fifo", 0644));
		fifo_r = MUST(open("fifo", O_RDONLY | O_NONBLOCK));
		fifo_w = MUST(open("fifo", O_WRONLY));
		fifo_rw = MUST(open("fifo", O_RDWR));
		MUST(write(fifo_w, "in the fifo", 11));
		return;
	}
	CHECK(fcntl(p[0], F_GETPIPE_SZ) == 16 << 10, "capacity %d", fcntl(p[0], F_GETPIPE_SZ));
	CHECK(read(p[0], b, sizeof b) == sizeof text + 4 && memcmp(b, text, sizeof text) == 0, "content");
	CHECK(read(p[0], b, 1) == -1 && errno == EAGAIN, "not empty, or no longer O_NONBLOCK");
	CHECK(write(full[1], b, sizeof b) == -1 && errno == EAGAIN, "the full pipe has room");
	for (size_t i = 0; i < content; i++) {
		CHECK(read(full[0], b, sizeof b) == sizeof b, "full pipe, part %zu", i);
		check(b, sizeof b, 5, "full pipe");
	}
	CHECK(read(full[0], b, 1) == -1 && errno == EAGAIN, "full pipe holds too much");
	CHECK(read(eof[0], b, sizeof b) == 4 && read(eof[0], b, sizeof b) == 0, "end of file");
	CHECK(read(fifo_r, b, sizeof b) == 11 && memcmp(b, "in the fifo", 11) == 0, "fifo");
	MUST(write(fifo_rw, "x", 1));
	CHECK(read(fifo_r, b, sizeof b) == 1, "fifo opened for both");
	int again = MUST(open("fifo", O_WRONLY | O_NONBLOCK));
	MUST(write(again, "yy", 2));
	CHECK(read(fifo_r, b, sizeof b) == 2, "the fifo is no longer the file of its name");
	(void)fifo_w;
}

static void packets(int after)
{
	static int p[2], gone, mixed[2];
	char b[8192];
	if (!after) {
		MUST(pipe2(p, O_DIRECT | O_NONBLOCK | O_CLOEXEC));
		MUST(fcntl(p[1], F_SETPIPE_SZ, 32 << 10));
		MUST(write(p[1], "one", 3));
		MUST(write(p[1], "2", 1));
		MUST(write(p[1], text, sizeof text));
		MUST(pipe2(mixed, O_NONBLOCK));
		fill(b, sizeof b, 6);
		MUST(write(mixed[1], b, sizeof b));
		MUST(fcntl(mixed[1], F_SETFL, O_DIRECT | O_NONBLOCK));
		MUST(write(mixed[1], "packet", 6));
		MUST(fcntl(mixed[1], F_SETFL, O_NONBLOCK));
		MUST(write(mixed[1], "tail", 4));
		MUST(mkfifo("gone fifo", 0600));
		gone = MUST(open("gone fifo", O_RDWR | O_NONBLOCK));
		MUST(fcntl(gone, F_SETFL, O_DIRECT | O_NONBLOCK));
		MUST(write(gone, "ab", 2));
		MUST(write(gone, "cd", 2));
		MUST(unlink("gone fifo"));
		return;
	}
	CHECK(fcntl(p[1], F_GETFL) == (O_WRONLY | O_DIRECT | O_NONBLOCK) && fcntl(p[1], F_GETPIPE_SZ) == 32 << 10, "flags %#o", fcntl(p[1], F_GETFL));
	CHECK(read(p[0], b, sizeof b) == 3 && memcmp(b, "one", 3) == 0, "first packet");
	CHECK(read(p[0], b, sizeof b) == 1 && b[0] == '2', "second packet");
	CHECK(read(p[0], b, 5) == 5, "part of the third packet");
	MUST(write(p[1], "x", 1));
	MUST(write(p[1], "yz", 2));
	CHECK(read(p[0], b, sizeof b) == 1 && read(p[0], b, sizeof b) == 2, "later packets");
	CHECK(read(mixed[0], b, sizeof b) == sizeof b, "bytes");
	check(b, sizeof b, 6, "bytes before a packet");
	CHECK(read(mixed[0], b, sizeof b) == 6 && memcmp(b, "packet", 6) == 0, "packet between bytes");
	CHECK(read(mixed[0], b, sizeof b) == 4 && memcmp(b, "tail", 4) == 0, "bytes after a packet");
	CHECK(read(gone, b, sizeof b) == 2 && b[0] == 'a' && read(gone, b, sizeof b) == 2 && b[0] == 'c', "packets in a deleted fifo");
}

static void events(int after)
{
	static int count, sem, ep, inner, p[2], q[2], gone;
	struct epoll_event ev, got[8];
	uint64_t v;
	if (!after) {
		count = MUST(eventfd(0, EFD_NONBLOCK));
		v = 0xfffffffffffffffaull;
		MUST(write(count, &v, 8));
		sem = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
		MUST(pipe(p));
		MUST(pipe(q));
		ep = MUST(epoll_create1(EPOLL_CLOEXEC));
		inner = MUST(epoll_create1(0));
		ev = (struct epoll_event){EPOLLIN | EPOLLET, {.u64 = 0x1122334455667788}};
		MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev));
		ev = (struct epoll_event){EPOLLIN | EPOLLONESHOT, {.u64 = 2}};
		MUST(epoll_ctl(ep, EPOLL_CTL_ADD, q[0], &ev));
		ev = (struct epoll_event){EPOLLIN, {.u64 = 3}};
		MUST(epoll_ctl(ep, EPOLL_CTL_ADD, inner, &ev));
		ev = (struct epoll_event){EPOLLIN, {.u64 = 4}};
		MUST(epoll_ctl(inner, EPOLL_CTL_ADD, sem, &ev));
		gone = at(MUST(dup(q[0])), 900);
		ev = (struct epoll_event){0, {.u64 = 5}};
		MUST(epoll_ctl(ep, EPOLL_CTL_ADD, gone, &ev));
		return;
	}
	CHECK(read(count, &v, 8) == 8 && v == 0xfffffffffffffffaull, "eventfd %#lx", (unsigned long)v);
	CHECK(read(count, &v, 8) == -1 && errno == EAGAIN, "eventfd is not empty");
	int n = epoll_wait(ep, got, 8, 0);
	CHECK(n == 1 && got[0].data.u64 == 3, "%d events, data %lu", n, (unsigned long)got[0].data.u64);
	for (int i = 0; i < 3; i++)
		CHECK(read(sem, &v, 8) == 8 && v == 1, "semaphore %lu", (unsigned long)v);
	CHECK(read(sem, &v, 8) == -1 && errno == EAGAIN, "semaphore is not empty");
	CHECK(epoll_wait(ep, got, 8, 0) == 0, "events without a reason");
	MUST(write(p[1], "x", 1));
	CHECK(epoll_wait(ep, got, 8, 0) == 1 && got[0].data.u64 == 0x1122334455667788, "edge: data %#lx", (unsigned long)got[0].data.u64);
	CHECK(epoll_wait(ep, got, 8, 0) == 0, "edge came twice");
	MUST(write(q[1], "x", 1));
	CHECK(epoll_wait(ep, got, 8, 0) == 1 && got[0].data.u64 == 2, "one shot");
	CHECK(epoll_wait(ep, got, 8, 0) == 0, "one shot came twice");
	ev = (struct epoll_event){EPOLLIN, {.u64 = 6}};
	CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, gone, &ev) == 0, "the set does not know number %d", gone);
	CHECK(epoll_wait(ep, got, 8, 0) == 1 && got[0].data.u64 == 6, "modified entry");
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL) == 0, "the set does not know number %d", p[0]);
}

static void devices(int after)
{
	static int null, zero, full, random, urandom, kmsg;
	char b[8] = "xxxxxxx";
	if (!after) {
		null = MUST(open("/dev/null", O_WRONLY));
		zero = MUST(open("/dev/zero", O_RDONLY));
		full = MUST(open("/dev/full", O_RDWR));
		random = MUST(open("/dev/random", O_RDONLY | O_NONBLOCK));
		urandom = MUST(open("/dev/urandom", O_RDONLY));
		kmsg = MUST(open("/dev/kmsg", O_WRONLY | O_APPEND));
		return;
	}
	CHECK(write(null, b, 8) == 8, "/dev/null");
	CHECK(read(zero, b, 8) == 8 && b[0] == 0, "/dev/zero");
	CHECK(write(full, b, 8) == -1 && errno == ENOSPC, "/dev/full");
	CHECK(write(kmsg, "<7>ckptfs test\n", 15) == 15, "/dev/kmsg");
	CHECK(read(urandom, b, 8) == 8 && read(random, b, 1) == 1, "/dev/random");
}

static void owner(int after)
{
	static int p[2];
	if (!after) {
		MUST(pipe(p));
		MUST(fcntl(p[0], F_SETOWN, getpid()));
		MUST(fcntl(p[0], F_SETSIG, SIGRTMIN));
		return;
	}
	CHECK(fcntl(p[0], F_GETOWN) == getpid() && fcntl(p[0], F_GETSIG) == SIGRTMIN, "owner %d signal %d",
	      fcntl(p[0], F_GETOWN), fcntl(p[0], F_GETSIG));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	memset(text, 't', sizeof text);
	static const struct {
		const char *name;
		void (*run)(int after);
	} parts[] = {{"regular", regular}, {"directory", directory}, {"pipes", pipes}, {"packets", packets}, {"events", events},
		     {"devices", devices}, {"owner", owner}};
	const char *only = argc > 4 ? argv[4] : "";
	for (size_t after = 0; after < 2; after++) {
		for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
			if (*only ? strcmp(only, parts[i].name) == 0 : parts[i].run != packets) // a deleted fifo comes back as another
				parts[i].run(after);
		if (!after) {
			ready();
			wait_go();
		}
	}
	pass();
}
