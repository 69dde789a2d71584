// Groups of fanotify with marks on files, directories, a mount and a filesystem. The one that reports events is
// asked for them afterwards.
#include "prog.h"
#include <fcntl.h>
#include <sys/fanotify.h>

#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x400
#endif
#ifndef FAN_MARK_EVICTABLE
#define FAN_MARK_EVICTABLE 0x200
#endif

// events reads all and returns the masks that came, of our own doing.
static uint64_t events(int fd, int *files)
{
	char b[8192];
	uint64_t all = 0;
	int n = read(fd, b, sizeof b);
	CHECK(n >= 0 || errno == EAGAIN, "read");
	*files = 0;
	struct fanotify_event_metadata *m = (void *)b;
	for (; n > 0 && FAN_EVENT_OK(m, n); m = FAN_EVENT_NEXT(m, n)) {
		all |= m->mask;
		if (m->fd >= 0) {
			++*files;
			MUST(close(m->fd));
		}
	}
	return all;
}

// marks is what fdinfo shows of a group.
static void marks(int fd, char *to, size_t size)
{
	char path[64], line[512];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(path, "re");
	*to = 0;
	while (fgets(line, sizeof line, f))
		if (strncmp(line, "fanotify", 8) == 0)
			strncat(to, line, size - strlen(to) - 1);
	fclose(f);
}

static void touch(const char *path)
{
	int x = MUST(open(path, O_CREAT | O_WRONLY, 0600));
	MUST(write(x, "y", 1));
	MUST(close(x));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	MUST(mkdir("dir", 0700));
	touch("file");
	touch("dir/quiet");
	int tells = MUST(fanotify_init(FAN_NONBLOCK | FAN_UNLIMITED_QUEUE, O_RDONLY | O_LARGEFILE));
	MUST(fanotify_mark(tells, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD, "dir"));
	MUST(fanotify_mark(tells, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY, AT_FDCWD, "dir/quiet"));
	int names = MUST(fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME, O_RDWR));
	MUST(fanotify_mark(names, FAN_MARK_ADD, FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_ONDIR, AT_FDCWD, "dir"));
	MUST(fanotify_mark(names, FAN_MARK_ADD, FAN_ATTRIB, AT_FDCWD, "file"));
	int wide = MUST(fanotify_init(0, 0)), evict = MUST(fanotify_init(FAN_NONBLOCK, 0));
	MUST(fanotify_mark(wide, FAN_MARK_ADD | FAN_MARK_MOUNT | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_CLOSE_WRITE, AT_FDCWD, "/proc"));
	MUST(fanotify_mark(wide, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN, AT_FDCWD, "."));
	if (fanotify_mark(evict, FAN_MARK_ADD | FAN_MARK_EVICTABLE, FAN_ACCESS, AT_FDCWD, "file") == 0)
		MUST(fanotify_mark(evict, FAN_MARK_ADD | FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY | FAN_MARK_EVICTABLE, FAN_OPEN, AT_FDCWD, "dir"));
	int all[] = {tells, names, wide, evict}, files;
	static char before[4][4096], after[4096];
	for (int i = 0; i < 4; i++)
		marks(all[i], before[i], sizeof before[i]);

	ready();
	wait_go();

	for (int i = 0; i < 4; i++) {
		marks(all[i], after, sizeof after);
		if (strstr(before[i], "mnt_id") == NULL) // its number is another one after a restart
			CHECK(strcmp(before[i], after) == 0, "group %d was\n%sis\n%s", i, before[i], after);
	}
	CHECK((fcntl(tells, F_GETFL) & O_NONBLOCK) && !(fcntl(wide, F_GETFL) & O_NONBLOCK), "O_NONBLOCK");
	CHECK((fcntl(names, F_GETFD) & FD_CLOEXEC) && !(fcntl(tells, F_GETFD) & FD_CLOEXEC), "close-on-exec");
	CHECK(events(tells, &files) == 0 && events(names, &files) == 0, "there are events already");
	touch("dir/quiet");
	CHECK(events(tells, &files) == 0, "an event that is ignored");
	touch("dir/new");
	CHECK(events(tells, &files) == FAN_MODIFY && files == 1, "no event of a change");
	CHECK((events(names, &files) & FAN_CREATE) && files == 0, "no event of a new file");
	MUST(chmod("file", 0640));
	CHECK(events(names, &files) & FAN_ATTRIB, "no event of a changed mode");
	pass();
}
