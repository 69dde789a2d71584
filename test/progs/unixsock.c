// Unix sockets: pairs within and between processes, what waits in them with its borders, credentials
// of messages and of connections, ends that were closed or shut down.
//
//	unixsock READY RESULT GO WHAT [chroot]
#include "prog.h"
#include <grp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/sockios.h>
#include <sys/un.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

static void pair(int type, int *s) { MUST(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, s)); }

// expect reads one message, or for a stream these very bytes.
static void expect(int fd, const char *want, const char *what)
{
	char b[256];
	ssize_t n = recv(fd, b, sizeof b, MSG_DONTWAIT);
	CHECK(n == (ssize_t)strlen(want) && memcmp(b, want, n) == 0, "%s: %zd bytes, %.*s, not %s", what, n, (int)(n > 0 ? n : 0), b, want);
}

static void empty(int fd, const char *what)
{
	char b[16];
	CHECK(recv(fd, b, sizeof b, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%s: something is left", what);
}

static void peer(int fd, int pid, int uid, int gid, const char *what)
{
	struct ucred c;
	socklen_t len = sizeof c;
	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &len));
	CHECK((int)c.pid == pid && (int)c.uid == uid && (int)c.gid == gid, "%s: SO_PEERCRED %d %d %d, not %d %d %d", what, c.pid, c.uid, c.gid, pid, uid, gid);
}

static const int types[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};

// pairs has everything within one process.
static void pairs(int after)
{
	static int s[3][2], shut[2], gone, reset, watch;
	char b[256];
	if (!after) {
		for (int i = 0; i < 3; i++) {
			pair(types[i], s[i]);
			MUST(send(s[i][0], "first", 5, 0));
			MUST(send(s[i][0], "second", 6, 0));
			MUST(send(s[i][1], "back", 4, 0));
		}
		MUST(fcntl(s[0][0], F_SETFL, O_RDWR | O_NONBLOCK));
		int size = 77777;
		MUST(setsockopt(s[0][0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
		pair(SOCK_STREAM, shut);
		MUST(send(shut[0], "last words", 10, 0));
		MUST(shutdown(shut[0], SHUT_WR));
		int t[2];
		pair(SOCK_STREAM, t);
		MUST(send(t[1], "will", 4, 0));
		close(t[1]);
		gone = t[0];
		pair(SOCK_STREAM, t);
		MUST(send(t[0], "unread", 6, 0));
		close(t[1]);
		reset = t[0];
		watch = MUST(epoll_create1(0));
		struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u64 = 42};
		MUST(epoll_ctl(watch, EPOLL_CTL_ADD, s[1][1], &ev));
		return;
	}
	struct epoll_event ev;
	CHECK(epoll_wait(watch, &ev, 1, 0) == 1 && ev.data.u64 == 42, "epoll");
	CHECK(recv(s[0][1], b, sizeof b, 0) == 11 && memcmp(b, "firstsecond", 11) == 0, "stream");
	for (int i = 1; i < 3; i++) {
		expect(s[i][1], "first", "message");
		expect(s[i][1], "second", "message");
	}
	for (int i = 0; i < 3; i++) {
		empty(s[i][1], "pair");
		expect(s[i][0], "back", "pair");
		MUST(send(s[i][1], "again", 5, 0));
		expect(s[i][0], "again", "pair");
		peer(s[i][0], getpid(), getuid(), getgid(), "pair");
		peer(s[i][1], getpid(), getuid(), getgid(), "pair");
	}
	int size = 0;
	socklen_t len = sizeof size;
	MUST(getsockopt(s[0][0], SOL_SOCKET, SO_SNDBUF, &size, &len));
	CHECK(size == 2 * 77777, "SO_SNDBUF %d", size);
	CHECK(fcntl(s[0][0], F_GETFL) == (O_RDWR | O_NONBLOCK), "flags");
	expect(shut[1], "last words", "shut down");
	CHECK(recv(shut[1], b, 1, MSG_DONTWAIT) == 0, "no end of file");
	CHECK(send(shut[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "writes after shutdown");
	MUST(send(shut[1], "other way", 9, 0));
	expect(shut[0], "other way", "half open");
	expect(gone, "will", "closed end");
	CHECK(recv(gone, b, 1, MSG_DONTWAIT) == 0, "no end of file");
	CHECK(send(gone, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "writes to a closed end");
	struct pollfd p = {.fd = reset, .events = POLLIN};
	CHECK(poll(&p, 1, 0) == 1 && (p.revents & (POLLERR | POLLHUP)) == (POLLERR | POLLHUP), "poll %#x", p.revents);
	CHECK(recv(reset, b, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET, "no ECONNRESET");
	CHECK(recv(reset, b, 1, MSG_DONTWAIT) == 0, "no end of file");
}

// hand sends a descriptor, and take receives it.
static void hand(int through, int fd)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct msghdr m = {.msg_iov = &(struct iovec){"fd", 2}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	*c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	MUST(sendmsg(through, &m, 0));
}

static int take(int through)
{
	char b[8], control[CMSG_SPACE(sizeof(int))];
	struct msghdr m = {.msg_iov = &(struct iovec){b, sizeof b}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	MUST(recvmsg(through, &m, MSG_CMSG_CLOEXEC));
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	CHECK(c && c->cmsg_type == SCM_RIGHTS, "no descriptor came");
	int fd;
	memcpy(&fd, CMSG_DATA(c), sizeof fd);
	return fd;
}

// expect_from wants a message with these credentials.
static void expect_from(int fd, const char *want, int pid, int uid)
{
	char b[64], control[CMSG_SPACE(sizeof(struct ucred))];
	struct msghdr m = {.msg_iov = &(struct iovec){b, sizeof b}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t n = MUST(recvmsg(fd, &m, 0));
	CHECK(n == (ssize_t)strlen(want) && memcmp(b, want, n) == 0, "%.*s, not %s", (int)n, b, want);
	struct ucred u;
	memcpy(&u, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof u);
	CHECK((int)u.pid == pid && (int)u.uid == uid, "%s: credentials %d %d, not %d %d", want, u.pid, u.uid, pid, uid);
}

static int up[2], shared_[2];

// child of processes: it has connected both ends as another user, and one of them is its parent's too.
static void child(void)
{
	MUST(setgroups(1, (gid_t[]){4321}));
	MUST(setresgid(1235, 1235, 1235));
	MUST(setresuid(1234, 1234, 1234));
	int own[2];
	pair(SOCK_STREAM, own);
	MUST(send(own[0], "mine", 4, 0));
	hand(up[1], own[1]);
	wait_go();
	peer(own[0], getpid(), 1234, 1235, "own pair of the child");
	gid_t g[8];
	socklen_t len = sizeof g;
	MUST(getsockopt(own[0], SOL_SOCKET, 59 /* SO_PEERGROUPS */, g, &len));
	CHECK(len == 4 && g[0] == 4321, "groups: %d bytes, %d", (int)len, g[0]);
	expect(own[1], "mine", "own pair of the child");
	MUST(send(shared_[1], "from child", 10, 0));
	_exit(0);
}

// processes has ends in two processes, one of which connected as another user.
static void processes(int after)
{
	static int got, left;
	static pid_t pid, ended;
	if (!after) {
		pair(SOCK_SEQPACKET, up);
		pair(SOCK_DGRAM, shared_);
		int on = 1;
		MUST(setsockopt(shared_[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
		MUST(send(shared_[1], "creds", 5, 0));
		if (!(pid = MUST(fork())))
			child();
		got = take(up[0]);
		if (!(ended = MUST(fork()))) {
			int own[2];
			pair(SOCK_STREAM, own);
			MUST(setsockopt(own[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
			MUST(send(own[0], "bequest", 7, 0));
			hand(up[1], own[1]);
			_exit(7);
		}
		left = take(up[0]);
		int status;
		MUST(waitpid(ended, &status, 0));
		return;
	}
	peer(left, ended, getuid(), getgid(), "end of one that has ended");
	struct { uint64_t mask, cgroup; uint32_t ids[11]; int32_t code; } info = {.mask = 8 /* PIDFD_INFO_EXIT */};
	int pidfd, ended_fd;
	socklen_t size = sizeof pidfd;
	MUST(getsockopt(got, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size));
	CHECK(syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) == 0 && kill(pid, 0) == 0, "SO_PEERPIDFD of the child");
	if (getsockopt(left, SOL_SOCKET, SO_PEERPIDFD, &ended_fd, &size) == 0) { // since Linux 6.16
		CHECK(syscall(SYS_pidfd_send_signal, ended_fd, 0, NULL, 0) == -1 && errno == ESRCH, "SO_PEERPIDFD of one that has ended");
		MUST(ioctl(ended_fd, _IOWR(0xff, 11, info), &info));
		CHECK(info.mask & 8 && info.code == 7 << 8, "it ended with %#x", info.code);
	}
	expect_from(left, "bequest", ended, getuid());
	peer(got, pid, 1234, 1235, "end of the child");
	peer(up[0], getpid(), getuid(), getgid(), "own end");
	expect_from(shared_[0], "creds", getpid(), getuid());
	expect_from(shared_[0], "from child", pid, 1234);
	int status;
	MUST(waitpid(pid, &status, 0));
	CHECK(status == 0, "child: %#x", status);
}

static socklen_t address(struct sockaddr_un *a, const char *name)
{
	memset(a, 0, sizeof *a);
	a->sun_family = AF_UNIX;
	size_t n = strlen(name);
	memcpy(a->sun_path, name, n);
	if (name[0] == '@')
		a->sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + n + (name[0] != '@');
}

static int bound(int type, const char *name)
{
	struct sockaddr_un a;
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
	MUST(bind(fd, (struct sockaddr *)&a, address(&a, name)));
	return fd;
}

static int dial(int type, const char *name)
{
	struct sockaddr_un a;
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
	MUST(connect(fd, (struct sockaddr *)&a, address(&a, name)));
	return fd;
}

static void named(int fd, int of_peer, const char *want)
{
	struct sockaddr_un a, w;
	socklen_t len = sizeof a, wlen = address(&w, want);
	if (!*want)
		wlen = offsetof(struct sockaddr_un, sun_path);
	MUST((of_peer ? getpeername : getsockname)(fd, (struct sockaddr *)&a, &len));
	CHECK(len == wlen && memcmp(&a, &w, len < sizeof a ? len : sizeof a) == 0, "name %.*s (%d), not %s (%d)", (int)len - 2, a.sun_path, (int)len, want, (int)wlen);
}

// client is another process and user, that has connected to the server, which has closed one
// connection, and connects once more.
static void client(const char *names[], int n)
{
	MUST(setgroups(0, NULL));
	MUST(setresgid(1235, 1235, 1235));
	MUST(setresuid(1234, 1234, 1234));
	int fd[8], wait = dial(SOCK_STREAM, names[0]);
	for (int i = 0; i < n; i++) {
		fd[i] = dial(SOCK_STREAM, names[i]);
		MUST(send(fd[i], "question", 8, 0));
	}
	wait_go();
	for (int i = 0; i < n; i++) {
		peer(fd[i], getppid(), 0, 0, names[i]);
		named(fd[i], 1, names[i]);
		named(fd[i], 0, "");
		char b[16];
		CHECK(recv(fd[i], b, sizeof b, 0) == 6 && memcmp(b, "answer", 6) == 0, "%s: no answer", names[i]);
		close(dial(SOCK_STREAM, names[i]));
	}
	char b[8];
	named(wait, 1, names[0]);
	CHECK(recv(wait, b, sizeof b, 0) == 0 && send(wait, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "closed by the server");
	_exit(0);
}

// servers listens under names of all sorts, with a client of another user.
static void servers(int after)
{
	static const char *names[4] = {"sock", "dir/deep", NULL, NULL};
	static int l[4], a[4], gone, moved, dgram, log, dead, waiting;
	static char abstract[64], absolute[80];
	static pid_t pid;
	char b[64];
	if (!after) {
		snprintf(abstract, sizeof abstract, "@ckptfs test %d", (int)getpid());
		names[2] = abstract;
		MUST((long)getcwd(absolute, 64) ? 0 : -1);
		strcat(absolute, "/abs");
		names[3] = absolute;
		MUST(mkdir("dir", 0755));
		for (int i = 0; i < 4; i++) {
			l[i] = bound(SOCK_STREAM, names[i]);
			MUST(listen(l[i], 5));
		}
		MUST(chmod("sock", 0666));
		MUST(chmod(absolute, 0666));
		MUST(chmod("dir/deep", 0777));
		MUST(chown("dir/deep", 1234, 99));
		MUST(chmod(".", 0755));
		int t[2];
		MUST(pipe(t));
		if (!(pid = MUST(fork()))) {
			close(t[0]);
			close(t[1]);
			client(names, 4);
		}
		close(t[0]);
		close(t[1]);
		close(a[0] = MUST(accept(l[0], NULL, NULL)));
		for (int i = 0; i < 4; i++)
			a[i] = MUST(accept4(l[i], NULL, NULL, SOCK_CLOEXEC));
		waiting = dial(SOCK_STREAM, "sock");
		gone = bound(SOCK_SEQPACKET, "gone");
		MUST(listen(gone, 3));
		MUST(unlink("gone"));
		moved = bound(SOCK_STREAM, "temporary");
		MUST(listen(moved, 3));
		MUST(rename("temporary", "final"));
		dgram = bound(SOCK_DGRAM, "log");
		log = dial(SOCK_DGRAM, "log");
		MUST(send(log, "line one", 8, 0));
		MUST(send(log, "line two", 8, 0));
		dead = dial(SOCK_DGRAM, "log");
		return;
	}
	for (int i = 0; i < 4; i++) {
		peer(a[i], pid, 1234, 1235, names[i]);
		peer(l[i], getpid(), 0, 0, names[i]);
		named(l[i], 0, names[i]);
		named(a[i], 0, names[i]);
		named(a[i], 1, "");
		expect(a[i], "question", names[i]);
		MUST(send(a[i], "answer", 6, 0));
	}
	int c = MUST(accept(l[0], NULL, NULL));
	peer(c, getpid(), 0, 0, "one that waited");
	MUST(send(waiting, "accepted", 8, 0));
	expect(c, "accepted", "one that waited");
	struct stat st;
	MUST(stat("dir/deep", &st));
	CHECK(S_ISSOCK(st.st_mode) && (st.st_mode & 07777) == 0777 && st.st_uid == 1234 && st.st_gid == 99, "dir/deep has mode %o and owner %d %d", st.st_mode, st.st_uid, st.st_gid);
	named(gone, 0, "gone");
	CHECK(access("gone", F_OK) == -1 && access("temporary", F_OK) == -1, "a deleted name is back");
	named(moved, 0, "temporary");
	close(dial(SOCK_STREAM, "final"));
	named(log, 1, "log");
	MUST(send(log, "line three", 10, 0));
	expect(dgram, "line one", "datagrams");
	expect(dgram, "line two", "datagrams");
	expect(dgram, "line three", "datagrams");
	close(dgram);
	CHECK(recv(log, b, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "datagrams back");
	CHECK(send(dead, "x", 1, 0) == -1 && errno == ECONNREFUSED, "nobody is there");
	int status;
	MUST(waitpid(pid, &status, 0));
	CHECK(status == 0, "client: %#x", status);
}

// flight has files under way in messages: one that nobody has open, one that everybody has, and a socket
// in whose queue are a pipe and that very socket. And an out-of-band byte.
static void flight(int after)
{
	static int s[2], p[2], file, oob[2];
	char b[64];
	if (!after) {
		pair(SOCK_STREAM, s);
		int t[2], u[2];
		pair(SOCK_DGRAM, t);
		MUST(pipe(u));
		MUST(write(u[1], "in the pipe", 11));
		p[1] = u[1];
		hand(t[0], u[0]);
		close(u[0]);
		hand(t[0], t[1]);
		int gone = MUST(open("file", O_RDWR | O_CREAT | O_APPEND, 0600));
		MUST(write(gone, "content", 7));
		MUST(lseek(gone, 3, SEEK_SET));
		file = MUST(open("file", O_RDONLY));
		MUST(lseek(file, 5, SEEK_SET));
		MUST(send(s[0], "plain", 5, 0));
		hand(s[0], gone);
		hand(s[0], file);
		hand(s[0], t[1]);
		close(gone);
		close(t[1]);
		close(t[0]);
		pair(SOCK_STREAM, oob);
		MUST(send(oob[0], "before", 6, 0));
		MUST(send(oob[0], "!", 1, MSG_OOB));
		MUST(send(oob[0], "after", 5, 0));
		return;
	}
	CHECK(recv(s[1], b, 5, MSG_DONTWAIT) == 5 && memcmp(b, "plain", 5) == 0, "bytes before files");
	int gone = take(s[1]), again = take(s[1]), sock = take(s[1]);
	CHECK(fcntl(gone, F_GETFL) & O_APPEND && lseek(gone, 0, SEEK_CUR) == 3, "the file is at %ld", lseek(gone, 0, SEEK_CUR));
	CHECK(lseek(again, 0, SEEK_CUR) == 5, "the other file is at %ld", lseek(again, 0, SEEK_CUR));
	MUST(lseek(again, 1, SEEK_SET));
	CHECK(lseek(file, 0, SEEK_CUR) == 1, "it is not shared any more");
	p[0] = take(sock);
	int itself = take(sock);
	CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0, sock, itself) == 0, "the socket in its own queue is another one");
	CHECK(read(p[0], b, sizeof b) == 11 && memcmp(b, "in the pipe", 11) == 0, "pipe");
	MUST(write(p[1], "more", 4));
	CHECK(read(p[0], b, sizeof b) == 4, "pipe");
	CHECK(recv(oob[1], b, sizeof b, 0) == 6, "up to the mark");
	int mark;
	MUST(ioctl(oob[1], SIOCATMARK, &mark));
	CHECK(mark == 1 && recv(oob[1], b, 1, MSG_OOB) == 1 && b[0] == '!', "out-of-band byte");
	expect(oob[1], "after", "behind the mark");
}

// outside is connected to a process that has left the tree.
static void outside(int after)
{
	static int out;
	static pid_t pid;
	if (!after) {
		int s[2], t[2];
		pair(SOCK_STREAM, s);
		MUST(pipe(t));
		pid_t c = MUST(fork());
		if (c == 0) {
			if ((pid = MUST(fork()))) {
				MUST(write(t[1], &pid, sizeof pid));
				_exit(0);
			}
			close(s[0]);
			close(t[0]);
			close(t[1]);
			for (;;)
				nap(10);
		}
		MUST(waitpid(c, NULL, 0));
		MUST(read(t[0], &pid, sizeof pid));
		close(t[0]);
		close(t[1]);
		MUST(send(s[1], "left", 4, 0));
		close(s[1]);
		out = s[0];
		return;
	}
	char b[8];
	expect(out, "left", "outside");
	if (restored()) {
		CHECK(recv(out, b, 1, 0) == 0, "no end of file");
		CHECK(send(out, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "it can be written to");
	} else {
		empty(out, "outside");
		MUST(send(out, "x", 1, 0));
	}
	kill(pid, SIGKILL);
}

static struct {
	const char *name;
	void (*f)(int after);
} parts[] = {{"pairs", pairs}, {"processes", processes}, {"servers", servers}, {"flight", flight}, {"outside", outside}};

static const char *base(const char *path)
{
	static char buf[3][256];
	static int n;
	snprintf(buf[n], sizeof buf[n], "/%s", strrchr(path, '/') + 1);
	return buf[n++];
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 5) { // in a root directory of its own
		MUST(chroot("."));
		ready_path = base(ready_path);
		result_path = base(result_path);
		go_path = base(go_path);
	}
	for (int after = 0; after < 2; after++) {
		for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
			if (argc > 4 && strcmp(argv[4], parts[i].name) == 0)
				parts[i].f(after);
		if (!after) {
			ready();
			wait_go();
		}
	}
	pass();
}
