// Locks of all three kinds, held by several processes, on files of several kinds, and threads and
// processes that wait for them. A process that is made at the end finds who holds what.
#include "prog.h"
#include <sys/file.h>

static int file, reader, inherited, dir, memory, gone, fifo, queue, came[2], told[2];
static pid_t child, waiter;

static int lock(int fd, int cmd, int type, off_t start, off_t len)
{
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
	return fcntl(fd, cmd, &l);
}

// is checks what keeps this process from locking some bytes. pid -1 is a lock of F_OFD_SETLK, 0
// nothing.
static void is(int fd, off_t start, off_t len, int type, pid_t pid, off_t from, off_t whole)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
	MUST(fcntl(fd, F_GETLK, &l));
	if (pid == 0) {
		CHECK(l.l_type == F_UNLCK, "bytes from %ld are locked by %d", (long)start, l.l_pid);
		return;
	}
	CHECK(l.l_type == type && l.l_pid == pid && l.l_start == from && l.l_len == whole,
	      "bytes from %ld: type %d, pid %d, not %d, %ld+%ld", (long)start, l.l_type, l.l_pid, pid, (long)l.l_start, (long)l.l_len);
}

// busy checks that flock(2) is refused.
static void busy(int fd, int how) { CHECK(flock(fd, how | LOCK_NB) == -1 && errno == EWOULDBLOCK, "flock %d", how); }

static void tell(int fd, char c) { MUST(write(fd, &c, 1)); }

static void hear(int fd, char c)
{
	char got = 0;
	ssize_t n;
	while ((n = read(fd, &got, 1)) == -1 && errno == EINTR)
		;
	CHECK(n == 1 && got == c, "heard %c, not %c", got, c);
}

static void *wait_for_bytes(void *arg)
{
	(void)arg;
	MUST(lock(file, F_SETLKW, F_WRLCK, 5, 10));
	tell(came[1], 'b');
	return NULL;
}

// asleep waits until a thread is in system call nr.
static void asleep(pid_t tid, long nr)
{
	char path[64], text[256];
	for (;; nap(5)) {
		snprintf(path, sizeof path, "/proc/%d/syscall", tid);
		int fd = open(path, O_RDONLY);
		ssize_t n = read(fd, text, sizeof text - 1);
		close(fd);
		if (n > 0 && atol(text) == nr)
			return;
	}
}

static _Atomic pid_t tid_of_bytes;
static void *bytes_thread(void *arg)
{
	tid_of_bytes = gettid();
	return wait_for_bytes(arg);
}

// in_child holds bytes 20-29 and waits for 5-14 in a thread.
static void in_child(void)
{
	MUST(lock(file, F_SETLK, F_WRLCK, 20, 10));
	MUST(lock(memory, F_SETLK, F_WRLCK, 7, 1));
	pthread_t t;
	CHECK(pthread_create(&t, NULL, bytes_thread, NULL) == 0, "thread");
	while (tid_of_bytes == 0)
		nap(1);
	asleep(tid_of_bytes, SYS_fcntl);
	tell(came[1], 'c');
	hear(told[0], 'e');
	pthread_join(t, NULL);
	_exit(0);
}

// in_waiter waits for the whole of a file.
static void in_waiter(void)
{
	int own = MUST(open("queue", O_RDWR));
	MUST(flock(own, LOCK_EX));
	tell(came[1], 'q');
	_exit(0);
}

// from_outside is what a process sees that holds nothing.
static void from_outside(pid_t root)
{
	int f = MUST(open("file", O_RDWR));
	is(f, 0, 5, 0, 0, 0, 0);
	is(f, 5, 1, F_WRLCK, root, 5, 10);
	is(f, 20, 1, F_WRLCK, child, 20, 10);
	is(f, 30, 10, 0, 0, 0, 0);
	is(f, 41, 1, F_WRLCK, -1, 40, 2);
	is(f, 42, 58, 0, 0, 0, 0);
	is(f, 5000, 1, F_RDLCK, root, 100, 0);
	MUST(flock(f, LOCK_SH | LOCK_NB));
	busy(f, LOCK_EX);
	busy(MUST(open("dir", O_RDONLY)), LOCK_SH);
	busy(MUST(open("queue", O_RDONLY)), LOCK_SH);
	is(memory, 0, 7, F_WRLCK, root, 0, 7);
	is(memory, 7, 1, F_WRLCK, child, 7, 1);
	int again = MUST(open("fifo", O_RDWR));
	is(again, 3, 1, F_RDLCK, -1, 3, 1);
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", gone);
	again = MUST(open(path, O_RDWR));
	busy(again, LOCK_SH);
	is(again, 1, 1, F_WRLCK, root, 1, 1);
	_exit(0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	MUST(pipe(came));
	MUST(pipe(told));
	MUST(mkdir("dir", 0700));
	MUST(mkfifo("fifo", 0600));
	file = MUST(open("file", O_RDWR | O_CREAT, 0600));
	reader = MUST(open("file", O_RDONLY));
	inherited = MUST(open("file", O_RDWR));
	dir = MUST(open("dir", O_RDONLY | O_DIRECTORY));
	memory = MUST(memfd_create("memory", 0));
	gone = MUST(open("gone", O_RDWR | O_CREAT, 0600));
	MUST(unlink("gone"));
	fifo = MUST(open("fifo", O_RDWR));
	queue = MUST(open("queue", O_RDWR | O_CREAT, 0600));
	MUST(lock(file, F_SETLK, F_WRLCK, 5, 10));
	MUST(lock(reader, F_SETLK, F_RDLCK, 100, 0));
	MUST(lock(inherited, F_OFD_SETLK, F_WRLCK, 40, 2));
	MUST(flock(file, LOCK_SH));
	MUST(flock(reader, LOCK_SH));
	MUST(flock(dir, LOCK_EX));
	MUST(flock(queue, LOCK_EX));
	MUST(flock(gone, LOCK_EX));
	MUST(lock(gone, F_SETLK, F_WRLCK, 1, 1));
	MUST(lock(memory, F_SETLK, F_WRLCK, 0, 7));
	MUST(lock(fifo, F_OFD_SETLK, F_RDLCK, 3, 1));
	if ((child = MUST(fork())) == 0)
		in_child();
	if ((waiter = MUST(fork())) == 0)
		in_waiter();
	asleep(waiter, SYS_flock);
	hear(came[0], 'c');
	ready();
	wait_go();
	pid_t root = getpid(), see = MUST(fork());
	if (see == 0)
		from_outside(root);
	int st;
	CHECK(waitpid(see, &st, 0) == see && st == 0, "what another process sees: %#x", st);
	// The others have the description, too.
	MUST(close(inherited));
	int own = MUST(open("file", O_RDWR));
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 40, .l_len = 1};
	MUST(fcntl(own, F_GETLK, &l));
	CHECK(l.l_type == F_WRLCK && l.l_pid == -1, "an inherited lock went with one of its descriptors: %d", l.l_type);
	// Closing any descriptor of the file has dropped this process's own.
	hear(came[0], 'b');
	MUST(flock(queue, LOCK_UN));
	hear(came[0], 'q');
	CHECK(waitpid(waiter, &st, 0) == waiter && st == 0, "waiter: %#x", st);
	tell(told[1], 'e');
	CHECK(waitpid(child, &st, 0) == child && st == 0, "child: %#x", st);
	is(own, 20, 10, 0, 0, 0, 0);
	is(own, 40, 2, 0, 0, 0, 0);
	pass();
}
