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

static int count(const char *dir)
{
	DIR *d = opendir(dir);
	CHECK(d != NULL, "%s", dir);
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
	int fds = count("/proc/self/fd"), tasks = count("/proc/self/task");
	ready();
	for (long i = 0; !gone_ahead(); i++) {
		int st;
		CHECK(waitpid(-1, &st, WNOHANG) == -1 && errno == ECHILD, "a child is seen by wait");
		if (all) {
			CHECK(waitpid(-1, &st, WNOHANG | __WCLONE) == -1 && errno == ECHILD, "a child is seen by wait with __WCLONE");
			CHECK(waitpid(-1, &st, WNOHANG | __WALL) == -1 && errno == ECHILD, "a child is seen by wait with __WALL");
		}
		CHECK(came == 0, "signal %d came", came);
		if (i % 16 == 0) {
			CHECK(count("/proc/self/fd") == fds, "%d descriptors, were %d", count("/proc/self/fd"), fds);
			CHECK(count("/proc/self/task") == tasks, "a thread too many");
		}
		struct timespec ts = {0, 300000};
		nanosleep(&ts, NULL);
	}
	pass();
}
