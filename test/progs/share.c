// Files shared across processes: an offset that moves for parent and child alike, a pipe with
// its ends in two processes, an eventfd and an epoll set in both, a descriptor table that two
// processes share (CLONE_FILES), with a lock that one of them took.
#include "prog.h"
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static void turn(int fd)
{
	char c;
	CHECK(read(fd, &c, 1) == 1, "turn");
}

static pid_t clone_files(void)
{
	struct clone_args a = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
	return MUST(syscall(SYS_clone3, &a, sizeof a));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int fd = MUST(open("shared", O_RDWR | O_CREAT | O_TRUNC, 0644));
	for (int i = 0; i < 100; i++)
		MUST(write(fd, "0123456789", 10));
	MUST(lseek(fd, 100, SEEK_SET));
	int ev = MUST(eventfd(0, 0)), ep = MUST(epoll_create1(0));
	struct epoll_event e = {EPOLLIN, {.fd = ev}};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e));
	int to[2], from[2], to2[2], from2[2];
	MUST(pipe(to));
	MUST(pipe(from));
	MUST(pipe2(to2, O_CLOEXEC));
	MUST(pipe2(from2, O_CLOEXEC));

	pid_t child = MUST(fork());
	if (child == 0) {
		close(to[1]);
		close(from[0]);
		close(to2[0]), close(to2[1]), close(from2[0]), close(from2[1]);
		MUST(dup2(fd, 123));
		MUST(write(from[1], "x", 1));
		turn(to[0]);
		CHECK(lseek(123, 0, SEEK_CUR) == 250, "child: offset %ld", (long)lseek(123, 0, SEEK_CUR));
		MUST(lseek(fd, 300, SEEK_SET));
		uint64_t v = 5;
		MUST(write(ev, &v, 8));
		MUST(write(from[1], "x", 1));
		turn(to[0]);
		CHECK((fcntl(fd, F_GETFL) & O_APPEND) != 0, "child: O_APPEND set by the parent");
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	turn(from[0]); // the child is set up

	int locked = MUST(open("locked", O_RDWR | O_CREAT, 0644));
	struct flock l = {.l_type = F_WRLCK, .l_start = 3, .l_len = 4};
	pid_t twin = clone_files();
	if (twin == 0) {
		MUST(fcntl(locked, F_SETLK, &l)); // both have the lock: it belongs to the table
		MUST(write(from2[1], "x", 1));
		turn(to2[0]);
		CHECK(fcntl(444, F_GETFD) >= 0, "twin: number 444 is not there");
		close(444);
		MUST(dup2(fd, 445));
		MUST(write(from2[1], "x", 1));
		turn(to2[0]);
		_exit(0);
	}
	turn(from2[0]);
	ready();
	wait_go();

	pid_t see = MUST(fork());
	if (see == 0) {
		MUST(fcntl(locked, F_GETLK, &l));
		CHECK(l.l_type == F_WRLCK && l.l_pid == twin && l.l_start == 3 && l.l_len == 4, "the twin's lock: type %d pid %d", l.l_type, l.l_pid);
		_exit(0);
	}
	CHECK(lseek(fd, 0, SEEK_CUR) == 100, "offset %ld", (long)lseek(fd, 0, SEEK_CUR));
	MUST(lseek(fd, 250, SEEK_SET));
	MUST(write(to[1], "x", 1));
	turn(from[0]);
	CHECK(lseek(fd, 0, SEEK_CUR) == 300, "offset set by the child");
	CHECK(epoll_wait(ep, &e, 1, 0) == 1 && e.data.fd == ev, "epoll of the shared eventfd");
	uint64_t v;
	CHECK(read(ev, &v, 8) == 8 && v == 5, "eventfd written by the child");
	MUST(fcntl(fd, F_SETFL, O_APPEND));
	MUST(write(to[1], "x", 1));
	int st;
	CHECK(waitpid(see, &st, 0) == see && st == 0, "what another process sees: %#x", st);
	CHECK(waitpid(child, &st, 0) == child && st == 0, "child: %#x", st);
	MUST(fcntl(fd, F_SETFL, 0));

	CHECK(syscall(SYS_kcmp, getpid(), twin, KCMP_FILES, 0, 0) == 0, "the twin has another table");
	CHECK(syscall(SYS_kcmp, getpid(), getppid(), KCMP_FILES, 0, 0) != 0, "our parent has the same table");
	MUST(dup2(fd, 444));
	MUST(write(to2[1], "x", 1));
	turn(from2[0]);
	CHECK(fcntl(444, F_GETFD) == -1, "444 was closed in the shared table");
	CHECK(lseek(445, 0, SEEK_CUR) == lseek(fd, 0, SEEK_CUR), "445 was opened in the shared table");
	MUST(write(to2[1], "x", 1));
	CHECK(waitpid(twin, &st, 0) == twin && st == 0, "twin: %#x", st);
	signal(SIGPIPE, SIG_IGN);
	CHECK(write(to[1], "x", 1) == -1 && errno == EPIPE, "the read end is still open somewhere");
	pass();
}
