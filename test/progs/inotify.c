// Watches of inotify under their numbers: directories, files, a link, one shot; shared with a
// child, watched by epoll. Neither a checkpoint nor a restore is an event.
#include "prog.h"
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>

static int in, blocking, ep;

static int queued(int fd)
{
	int n;
	MUST(ioctl(fd, FIONREAD, &n));
	return n;
}

static void expect(int fd, int wd, uint32_t mask, const char *name)
{
	char b[sizeof(struct inotify_event) + 256];
	struct inotify_event *e = (void *)b;
	MUST(read(fd, b, sizeof *e + 16));
	CHECK(e->wd == wd && e->mask == mask && strcmp(e->len ? e->name : "", name) == 0, "event %d %#x %s, not %d %#x %s", e->wd, e->mask, e->len ? e->name : "", wd, mask, name);
}

static void touch(const char *name) { close(MUST(open(name, O_CREAT | O_WRONLY, 0644))); }

int main(int argc, char **argv)
{
	begin(argc, argv);
	MUST(mkdir("dir", 0755));
	MUST(mkdir("other", 0755));
	touch("other/file");
	MUST(symlink("nowhere", "other/link"));
	in = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	blocking = MUST(inotify_init1(0));
	int dir = MUST(inotify_add_watch(in, "dir", IN_CREATE | IN_EXCL_UNLINK));
	for (int i = 0; i < 40; i++)
		MUST(inotify_rm_watch(in, MUST(inotify_add_watch(in, "other", IN_OPEN))));
	for (char b[4096]; read(in, b, sizeof b) > 0;)
		;
	int file = MUST(inotify_add_watch(in, "other/file", IN_ALL_EVENTS | IN_ONESHOT));
	int link = MUST(inotify_add_watch(in, "other/link", IN_ATTRIB | IN_DONT_FOLLOW));
	CHECK(dir == 1 && file == 42 && link == 43, "numbers %d %d %d", dir, file, link);
	// What this program executes and has open is what a checkpoint and a restore look at.
	int open_dir = MUST(open("dir", O_RDONLY)), open_file = MUST(open("other/file", O_RDWR));
	for (char b[4096]; read(in, b, sizeof b) > 0;)
		;
	int again = MUST(inotify_add_watch(in, "other/file", IN_MODIFY | IN_CLOSE | IN_OPEN | IN_ACCESS));
	CHECK(again == file || again == 44, "number %d", again);
	int exe = MUST(inotify_add_watch(blocking, "/proc/self/exe", IN_ALL_EVENTS));
	MUST(inotify_add_watch(blocking, "dir", IN_ALL_EVENTS));
	ep = MUST(epoll_create1(0));
	struct epoll_event ev = {EPOLLIN | EPOLLET, {.u64 = 7}};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, in, &ev));
	pid_t child = MUST(fork());
	if (child == 0) {
		wait_go();
		while (access("dir/one", F_OK) != 0)
			nap(1);
		touch("dir/two");
		_exit(0);
	}
	CHECK(queued(in) == 0 && queued(blocking) == 0, "%d %d bytes already", queued(in), queued(blocking));

	ready();
	wait_go();

	CHECK(queued(in) == 0 && queued(blocking) == 0, "%d %d bytes of events from nowhere", queued(in), queued(blocking));
	CHECK(epoll_wait(ep, &ev, 1, 0) == 0, "epoll");
	CHECK(fcntl(in, F_GETFL) == O_NONBLOCK && fcntl(blocking, F_GETFL) == 0, "flags %#o %#o", fcntl(in, F_GETFL), fcntl(blocking, F_GETFL));
	MUST(inotify_rm_watch(blocking, exe));
	expect(blocking, exe, IN_IGNORED, "");
	touch("dir/one");
	CHECK(epoll_wait(ep, &ev, 1, 0) == 1 && ev.data.u64 == 7, "epoll");
	MUST(waitpid(child, NULL, 0));
	expect(in, dir, IN_CREATE, "one");
	expect(in, dir, IN_CREATE, "two");
	char c;
	MUST(pread(open_file, &c, 0, 0));
	MUST(write(open_file, "x", 1));
	expect(in, again, IN_MODIFY, "");
	struct timespec now[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_NOW}};
	MUST(utimensat(AT_FDCWD, "other/link", now, AT_SYMLINK_NOFOLLOW));
	expect(in, link, IN_ATTRIB, "");
	CHECK(queued(in) == 0, "%d bytes too many", queued(in));
	CHECK(inotify_add_watch(in, "dir", IN_CREATE) == dir, "the watch of dir has another number");
	int next = MUST(inotify_add_watch(in, "other", IN_CREATE));
	CHECK(next > link, "a number that is used: %d", next);
	(void)open_dir;
	pass();
}
