// A process without children that asks all the time whether it has any: the helper that a
// checkpoint makes must never be seen. It also watches that no descriptor and no thread
// appears, and that no signal comes. With "killed" as argument 4 it asks only as programs do:
// of a checkpoint that was killed, a dead helper may stay that wait sees with __WALL. It then
// leaves SIGURG alone as well: the calls of a checkpoint end in a signal that the target ignores by
// default, and one that has a handler for all of those gets one of them if the tracer dies.
#include "prog.h"
#include <dirent.h>

static volatile sig_atomic_t came;

static void on(int sig) { came = sig; }

// Descriptors are counted one by one, since a folder of /proc that is open at the moment of a
// checkpoint is refused; threads seldom, since that cannot be helped.
static int descriptors(void)
{
	int n = 0;
	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) != -1;
	return n;
}

static int threads(void)
{
	DIR *d = opendir("/proc/self/task");
	CHECK(d != NULL, "/proc/self/task");
	int n = 0;
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int all = argc < 5 || strcmp(argv[4], "killed") != 0;
	for (int s = 1; s <= SIGRTMAX; s++)
		if ((all || s != SIGURG) && s != SIGKILL && s != SIGSTOP && s != SIGSEGV && s != SIGBUS && s != SIGILL)
			signal(s, on);
	int fds = descriptors(), tasks = threads();
	ready();
	for (long i = 0; !gone_ahead(); i++) {
		int st;
		CHECK(waitpid(-1, &st, WNOHANG) == -1 && errno == ECHILD, "a child is seen by wait");
		if (all) {
			CHECK(waitpid(-1, &st, WNOHANG | __WCLONE) == -1 && errno == ECHILD, "a child is seen by wait with __WCLONE");
			CHECK(waitpid(-1, &st, WNOHANG | __WALL) == -1 && errno == ECHILD, "a child is seen by wait with __WALL");
		}
		CHECK(came == 0, "signal %d came", came);
		if (i % 16 == 0)
			CHECK(descriptors() == fds, "%d descriptors, were %d", descriptors(), fds);
		if (i % 128 == 0)
			CHECK(threads() == tasks, "a thread too many");
		struct timespec ts = {0, 300000};
		nanosleep(&ts, NULL);
	}
	pass();
}
