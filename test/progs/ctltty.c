// A session whose leader does not have its controlling terminal open, only another process has:
// its child (MODE later), whose process group is the foreground one, or its parent (MODE earlier).
//
//	MODE TTY
#include "prog.h"
#include <termios.h>

static dev_t terminal;

static void check_tty(const char *who)
{
	int fd = open("/dev/tty", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0, "%s: /dev/tty", who);
	CHECK(getsid(0) == tcgetsid(fd), "%s: it controls session %d, not %d", who, tcgetsid(fd), getsid(0));
	close(fd);
}

static void check_open(int fd, const char *who)
{
	struct stat st;
	CHECK(fstat(fd, &st) == 0 && st.st_rdev == terminal, "%s: number %d is not the terminal", who, fd);
}

static void turn(int fd)
{
	char c;
	CHECK(read(fd, &c, 1) == 1, "turn");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	CHECK(argc == 6, "MODE TTY");
	int later = strcmp(argv[4], "later") == 0;
	int tty = MUST(open(argv[5], later ? O_RDWR : O_RDWR | O_NOCTTY));
	struct stat st;
	MUST(fstat(tty, &st));
	terminal = st.st_rdev;
	int to[2], from[2];
	MUST(pipe(to));
	MUST(pipe(from));
	pid_t child = MUST(fork());
	if (child == 0) {
		if (!later) { // it leads a session, and closes the terminal
			MUST(setsid());
			close(MUST(open(argv[5], O_RDWR)));
			close(tty);
			check_tty("child");
		}
		MUST(write(from[1], "x", 1));
		turn(to[0]);
		check_tty("child");
		if (later)
			check_open(tty, "child");
		_exit(0);
	}
	turn(from[0]);
	if (later) {
		MUST(setpgid(child, child));
		MUST(tcsetpgrp(tty, child));
		close(tty);
		check_tty("leader");
	}
	ready();
	wait_go();
	if (later) {
		check_tty("leader");
		int fd = MUST(open("/dev/tty", O_RDWR));
		CHECK(tcgetpgrp(fd) == child, "the foreground process group is %d, not %d", tcgetpgrp(fd), child);
	} else
		check_open(tty, "parent");
	MUST(write(to[1], "x", 1));
	int s;
	CHECK(waitpid(child, &s, 0) == child && s == 0, "child: %#x", s);
	pass();
}
