// A child that is stopped by a signal, one that is stopped with a signal pending, and one
// whose stop its parent has not asked about yet.
#include "prog.h"

static pid_t start(int fd)
{
	pid_t pid = MUST(fork());
	if (pid == 0) {
		setpgid(0, 0); // in an orphaned group SIGTSTP stops nobody
		for (;;) { // runs only when it is let
			char c = 'x';
			write(fd, &c, 1);
			nap(2);
		}
	}
	char c;
	CHECK(read(fd - 1, &c, 1) == 1, "first sign of life");
	return pid;
}

static char state(pid_t pid)
{
	char path[64], b[512] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = MUST(open(path, O_RDONLY));
	MUST(read(fd, b, sizeof b - 1));
	close(fd);
	return strrchr(b, ')')[2];
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int p[3][2];
	pid_t c[3];
	for (int i = 0; i < 3; i++) {
		MUST(pipe2(p[i], O_NONBLOCK | O_CLOEXEC));
		fcntl(p[i][0], F_SETFL, 0);
		// start expects the read end just below the write end
		CHECK(p[i][1] == p[i][0] + 1, "pipe numbers");
		c[i] = start(p[i][1]);
		MUST(kill(c[i], i == 0 ? SIGTSTP : SIGSTOP));
		while (state(c[i]) != 'T')
			nap(1);
	}
	int status;
	for (int i = 0; i < 2; i++)
		CHECK(waitpid(c[i], &status, WUNTRACED) == c[i] && WIFSTOPPED(status), "stop of child %d", i);
	MUST(kill(c[1], SIGTERM)); // stays pending until it goes on
	ready();
	wait_go();

	for (int i = 0; i < 3; i++)
		CHECK(state(c[i]) == 'T', "child %d is in state %c", i, state(c[i]));
	CHECK(waitpid(c[0], &status, WNOHANG) == 0, "child 0 changed its state: %#x", status);
	MUST(kill(c[1], SIGCONT));
	CHECK(waitpid(c[1], &status, 0) == c[1] && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM,
	      "child 1 ended with %#x", status);
	for (int i = 0; i < 3; i += 2) {
		char b[65536];
		fcntl(p[i][0], F_SETFL, O_NONBLOCK);
		while (read(p[i][0], b, sizeof b) > 0)
			;
		MUST(kill(c[i], SIGCONT));
		fcntl(p[i][0], F_SETFL, 0);
		CHECK(read(p[i][0], b, 1) == 1, "child %d does not go on", i);
		MUST(kill(c[i], SIGKILL));
		CHECK(waitpid(c[i], &status, 0) == c[i] && WTERMSIG(status) == SIGKILL, "end of child %d: %#x", i, status);
	}
	pass();
}
