// Pseudoterminals with both ends in the tree.
//
//	jobs      a session on one, its foreground and background groups, its queues, and who else has it
//	settings  modes, a lock, exclusive and packet mode, a master without a slave, a slave that is hung up
//	taken     one that is held open until GO
#include "prog.h"
#include <poll.h>
#include <pty.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>

static struct termios cooked(int fd)
{
	struct termios t;
	memset(&t, 0, sizeof t);
	MUST(tcgetattr(fd, &t));
	return t;
}

static void expect(int fd, const char *want, const char *what)
{
	char b[8192] = "";
	size_t n = 0;
	while (n < strlen(want)) {
		ssize_t r = read(fd, b + n, sizeof b - 1 - n);
		CHECK(r > 0, "%s: read %zd after %zu bytes: \"%s\"", what, r, n, b);
		n += r;
	}
	CHECK(strcmp(b, want) == 0, "%s: \"%s\", not \"%s\"", what, b, want);
}

static void say(int fd, const char *text, const char *what)
{
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s", what);
}

static int flag(int fd, unsigned long nr)
{
	int n = -1;
	MUST(ioctl(fd, nr, &n));
	return n;
}

static void settings(void)
{
	int m, s;
	struct winsize ws = {33, 77, 5, 6}, w;
	MUST(openpty(&m, &s, NULL, NULL, &ws));
	char name[64], after[64];
	CHECK(ptsname_r(m, name, sizeof name) == 0, "ptsname");
	int reader = MUST(open(name, O_RDONLY | O_NOCTTY | O_NONBLOCK)), writer = MUST(open(name, O_WRONLY | O_NOCTTY | O_APPEND));
	struct termios t = cooked(s);
	t.c_lflag = ISIG;
	t.c_iflag = IXANY | IUTF8;
	t.c_oflag = 0;
	t.c_cc[VMIN] = 3;
	t.c_cc[VTIME] = 2;
	t.c_cc[VSUSP] = 'z';
	cfsetspeed(&t, B9600);
	MUST(tcsetattr(s, TCSANOW, &t));
	t = cooked(s);
	MUST(ioctl(m, TIOCPKT, &(int){1}));
	MUST(ioctl(m, TIOCEXCL));
	MUST(ioctl(s, TIOCEXCL));
	MUST(ioctl(m, TIOCSPTLCK, &(int){1}));
	int fresh = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	int closed, gone, hung;
	MUST(openpty(&closed, &hung, NULL, NULL, NULL));
	close(hung);
	MUST(openpty(&gone, &hung, NULL, NULL, NULL));
	close(gone);
	int ep = MUST(epoll_create1(0));
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = m};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, m, &ev));
	ready();
	wait_go();
	struct termios u = cooked(m);
	CHECK(memcmp(&t, &u, sizeof t) == 0, "settings");
	MUST(ioctl(s, TIOCGWINSZ, &w));
	CHECK(memcmp(&w, &ws, sizeof w) == 0, "window size");
	CHECK(ptsname_r(m, after, sizeof after) == 0 && strcmp(name, after) == 0, "it is %s now, was %s", after, name);
	CHECK(flag(m, TIOCGPKT) == 1 && flag(m, TIOCGEXCL) == 1 && flag(s, TIOCGEXCL) == 1 && flag(m, TIOCGPTLCK) == 1, "flags");
	CHECK((fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK), "reader");
	CHECK((fcntl(writer, F_GETFL) & (O_ACCMODE | O_APPEND)) == (O_WRONLY | O_APPEND), "writer");
	CHECK(epoll_wait(ep, &ev, 1, 0) == 0, "there is something to read already");
	say(writer, "out", "write");
	CHECK(epoll_wait(ep, &ev, 1, -1) == 1 && ev.data.fd == m, "epoll");
	char b[9];
	CHECK(read(m, b, 9) == 4 && memcmp(b, "\0out", 4) == 0, "packet");
	MUST(ioctl(m, TIOCPKT, &(int){0}));
	say(m, "typed", "write");
	CHECK(read(s, b, 5) == 5 && memcmp(b, "typed", 5) == 0, "input");
	CHECK(read(fresh, b, 1) == -1 && errno == EAGAIN, "nobody has opened the slave");
	CHECK(read(closed, b, 1) == -1 && errno == EIO, "all have closed the slave");
	CHECK(read(hung, b, 1) == 0, "hung up: read");
	CHECK(write(hung, b, 1) == -1 && errno == EIO, "hung up: write");
	close(s);
	close(reader);
	close(writer);
	CHECK(read(m, b, 1) == -1 && errno == EIO, "all have closed this one, too");
}

static volatile sig_atomic_t got;

static void note(int sig) { got = sig; }

// background is a member of a background group: reading stops it (SIGTTIN), which it catches here.
static void background(int from, int tty)
{
	char c;
	struct sigaction a = {.sa_handler = note};
	sigaction(SIGTTIN, &a, NULL);
	CHECK(read(from, &c, 1) == 1, "turn");
	CHECK(read(tty, &c, 1) == -1 && errno == EINTR && got == SIGTTIN, "reading in the background: signal %d", (int)got);
	_exit(0);
}

static void jobs(void)
{
	int m, s, pair[2], to[2], up[2];
	MUST(openpty(&m, &s, NULL, NULL, NULL));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(pipe(to));
	MUST(pipe(up));
	struct termios t = cooked(s);
	t.c_lflag &= ~ECHO;
	MUST(tcsetattr(s, TCSANOW, &t));
	pid_t leader = MUST(fork());
	if (leader == 0) {
		close(m);
		MUST(setsid());
		MUST(ioctl(s, TIOCSCTTY, 0));
		int tty = MUST(open("/dev/tty", O_RDWR));
		pid_t back = MUST(fork());
		if (back == 0) {
			MUST(setpgid(0, 0));
			background(to[0], s);
		}
		setpgid(back, back);
		pid_t fore = MUST(fork());
		if (fore == 0) {
			MUST(setpgid(0, 0));
			signal(SIGTTOU, SIG_IGN);
			MUST(tcsetpgrp(s, getpid()));
			MUST(write(up[1], "x", 1));
			wait_go();
			CHECK(tcgetpgrp(tty) == getpid(), "foreground group %d", tcgetpgrp(tty));
			expect(s, "one\n", "first line");
			expect(s, "two\n", "second line");
			CHECK(read(s, &(char){0}, 1) == 0, "end of file");
			expect(tty, "partly!\n", "the line that was being edited");
			struct sigaction a = {.sa_handler = note};
			sigaction(SIGINT, &a, NULL);
			say(s, "ready for Ctrl-C", "write");
			while (got != SIGINT)
				nap(1);
			_exit(0);
		}
		int st;
		wait_go();
		CHECK(tcgetsid(tty) == getpid(), "session %d", tcgetsid(tty));
		CHECK(waitpid(fore, &st, 0) == fore && st == 0, "foreground: %#x", st);
		CHECK(waitpid(back, &st, 0) == back && st == 0, "background: %#x", st);
		close(s);
		close(tty);
		signal(SIGHUP, note);
		MUST(write(up[1], "x", 1));
		while (got != SIGHUP)
			nap(1);
		int fd = open("/dev/tty", O_RDWR);
		CHECK(fd == -1, "a terminal that was hung up");
		_exit(0);
	}
	close(s);
	char c;
	CHECK(read(up[0], &c, 1) == 1, "turn");
	pid_t helper = MUST(fork()); // has the master, too
	if (helper == 0) {
		wait_go();
		CHECK(read(pair[1], &c, 1) == 1, "turn");
		MUST(write(pair[1], "x", 1));
		_exit(0);
	}
	MUST(fcntl(m, F_SETOWN, getpid()));
	say(m, "one\ntwo\n\x04partlx", "type");
	ready();
	wait_go();
	CHECK(fcntl(m, F_GETOWN) == getpid(), "owner");
	CHECK(tcgetsid(m) == leader, "session %d", tcgetsid(m));
	say(m, "\x7fy!\n", "type the rest");
	expect(m, "ready for Ctrl-C", "foreground");
	MUST(write(to[1], "x", 1));
	nap(20);
	say(m, "\x03", "Ctrl-C");
	CHECK(read(up[0], &c, 1) == 1, "turn");
	MUST(write(pair[0], "x", 1));
	CHECK(read(pair[0], &c, 1) == 1, "helper");
	int st;
	CHECK(waitpid(helper, &st, 0) == helper && st == 0, "helper: %#x", st);
	close(m);
	CHECK(waitpid(leader, &st, 0) == leader && st == 0, "leader: %#x", st);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	CHECK(argc == 5, "MODE");
	if (strcmp(argv[4], "settings") == 0)
		settings();
	else if (strcmp(argv[4], "jobs") == 0)
		jobs();
	else {
		int m = MUST(posix_openpt(O_RDWR | O_NOCTTY));
		ready();
		wait_go();
		char b[64];
		CHECK(ptsname_r(m, b, sizeof b) == 0, "ptsname");
	}
	pass();
}
