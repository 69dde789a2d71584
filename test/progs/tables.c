// Threads with a descriptor table of their own (unshare(CLONE_FILES)): one that shares descriptions with
// its process and has some that nobody else has, with locks and an epoll set, and one that shares the first
// one's table. All descriptors of the process stay its own.
#include "prog.h"
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static int common, only, cloexec, ep, ev, tick, pair[2], flocked, aside, leader_tid, tid, twin_tid, late;
static volatile int set, step;
static mqd_t queue;
static struct flock lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 5};

static void until(volatile int *what, int value)
{
	while (*what != value)
		nap(5);
}

static int same_table(int a, int b)
{
	return MUST(syscall(SYS_kcmp, a, b, KCMP_FILES, 0, 0)) == 0;
}

static void *twin(void *arg)
{
	(void)arg;
	twin_tid = gettid();
	until(&step, 3);
	CHECK(same_table(tid, twin_tid) && !same_table(leader_tid, twin_tid), "the twin's table");
	CHECK(lseek(only, 0, SEEK_CUR) == 7, "what only the threads have");
	close(444);
	step = 4;
	until(&step, 99);
	return NULL;
}

static void *thread(void *arg)
{
	(void)arg;
	tid = gettid();
	MUST(unshare(CLONE_FILES));
	only = MUST(open("only", O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(write(only, "0123456789", 10));
	MUST(lseek(only, 7, SEEK_SET));
	MUST(dup2(only, 200)); // 200 of the process is another file
	cloexec = MUST(fcntl(common, F_DUPFD_CLOEXEC, 300));
	MUST(dup2(queue, 400));
	close(aside); // the process has it still
	ev = MUST(eventfd(3, 0));
	ep = MUST(epoll_create1(0));
	struct epoll_event e = {EPOLLIN, {.u64 = 0x1234567890abcdefull}};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e));
	tick = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
	struct itimerspec its = {{100000, 0}, {100000, 0}};
	MUST(timerfd_settime(tick, 0, &its, NULL));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	MUST(write(pair[0], "waits", 5));
	if (late) // a file about processes, which a restore opens when all threads are there
		late = MUST(syscall(SYS_pidfd_open, getpid(), 0));
	struct f_owner_ex own = {F_OWNER_TID, tid};
	MUST(fcntl(pair[1], F_SETOWN_EX, &own));
	MUST(fcntl(only, F_SETLK, &lock));
	flocked = MUST(open("flocked", O_RDWR | O_CREAT, 0600));
	MUST(syscall(SYS_flock, flocked, 2 /* LOCK_EX */));
	pthread_t t;
	pthread_create(&t, NULL, twin, NULL);
	while (twin_tid == 0)
		nap(5);
	set = 1;
	until(&step, 1);

	CHECK(!same_table(leader_tid, tid), "the tables are one");
	CHECK(lseek(common, 0, SEEK_CUR) == 50, "an offset that the process has set is %ld", (long)lseek(common, 0, SEEK_CUR));
	MUST(lseek(cloexec, 60, SEEK_SET));
	CHECK(fcntl(cloexec, F_GETFD) == FD_CLOEXEC && fcntl(common, F_GETFD) == 0, "close-on-exec");
	CHECK(fcntl(201, F_GETFD) == -1, "the process has opened 201, and it is here too");
	CHECK(fcntl(aside, F_GETFD) == -1, "what was closed here");
	struct stat a, b;
	MUST(fstat(200, &a));
	MUST(fstat(only, &b));
	CHECK(a.st_ino == b.st_ino && lseek(200, 0, SEEK_CUR) == 7, "number 200 here");
	CHECK(epoll_wait(ep, &e, 1, 0) == 1 && e.data.u64 == 0x1234567890abcdefull, "epoll");
	uint64_t v;
	CHECK(read(ev, &v, 8) == 8 && v == 3, "eventfd");
	MUST(timerfd_gettime(tick, &its));
	CHECK(its.it_value.tv_sec > 90000 && its.it_interval.tv_sec == 100000, "timerfd: %ld", (long)its.it_value.tv_sec);
	char buf[8];
	CHECK(read(pair[1], buf, sizeof buf) == 5 && memcmp(buf, "waits", 5) == 0, "socketpair");
	CHECK(fcntl(pair[1], F_GETOWN_EX, &own) == 0 && own.type == F_OWNER_TID && own.pid == tid, "owner %d %d", own.type, own.pid);
	if (late)
		CHECK(syscall(SYS_pidfd_send_signal, late, 0, NULL, 0) == 0, "pidfd");
	dup2(only, 444);
	step = 3;
	until(&step, 4);
	CHECK(fcntl(444, F_GETFD) == -1, "the twin has closed it in the table of both");
	step = 5;
	until(&step, 99);
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	late = argc > 4 && strcmp(argv[4], "late") == 0;
	leader_tid = gettid();
	sigset_t wanted;
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGUSR1);
	MUST(sigprocmask(SIG_BLOCK, &wanted, NULL)); // in all threads
	common = MUST(open("common", O_RDWR | O_CREAT | O_TRUNC, 0600));
	for (int i = 0; i < 10; i++)
		MUST(write(common, "0123456789", 10));
	MUST(lseek(common, 20, SEEK_SET));
	int other = MUST(open("other", O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(dup2(other, 200));
	aside = MUST(dup2(MUST(open("/dev/null", O_RDWR)), 333));
	MUST(fcntl(aside, F_SETFD, FD_CLOEXEC));
	char name[64];
	snprintf(name, sizeof name, "/ckptfs-tables-%d", getpid());
	queue = MUST(mq_open(name, O_RDWR | O_CREAT, 0600, NULL));
	MUST(mq_unlink(name));
	pthread_t t;
	pthread_create(&t, NULL, thread, NULL);
	until(&set, 1);
	pid_t child = 0; // with the table of the process
	struct clone_args share = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
	if (late && (child = MUST(syscall(SYS_clone3, &share, sizeof share))) == 0) {
		while (fcntl(500, F_GETFD) == -1)
			nap(5);
		CHECK(same_table(getppid(), getpid()) && !same_table(tid, getpid()), "the child's table");
		close(500);
		_exit(0);
	}
	int mine = MUST(open("mine", O_RDWR | O_CREAT, 0600)); // a number that the threads use for something else
	MUST(fcntl(mine, F_SETLK, &lock));
	// A close of the queue in any table of the process would take this back.
	MUST(mq_notify(queue, &(struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 77}));
	ready();
	wait_go();

	MUST(mq_send(queue, "x", 1, 0));
	siginfo_t info;
	CHECK(sigwaitinfo(&wanted, &info) == SIGUSR1 && info.si_value.sival_int == 77, "signal of the queue");

	CHECK(!same_table(leader_tid, tid) && same_table(tid, twin_tid), "tables");
	// The lock belongs to the other table: this one is a stranger to it, and so is another process.
	int again = MUST(open("only", O_RDWR));
	struct flock l = lock;
	MUST(fcntl(again, F_GETLK, &l));
	CHECK(l.l_type == F_WRLCK && l.l_pid == getpid() && l.l_start == 10 && l.l_len == 5, "lock of the thread: type %d pid %d", l.l_type, l.l_pid);
	close(again);
	int flock2 = MUST(open("flocked", O_RDWR));
	CHECK(syscall(SYS_flock, flock2, 2 | 4 /* LOCK_EX | LOCK_NB */) == -1 && errno == EWOULDBLOCK, "flock of the thread");
	close(flock2);
	l = lock;
	MUST(fcntl(mine, F_GETLK, &l));
	CHECK(l.l_type == F_UNLCK, "our own lock is in our way");
	pid_t see = MUST(fork());
	if (see == 0) {
		l = lock;
		MUST(fcntl(mine, F_GETLK, &l));
		CHECK(l.l_type == F_WRLCK && l.l_pid == leader_tid, "lock of the process");
		_exit(0);
	}
	int st;
	if (child) {
		MUST(dup2(other, 500));
		CHECK(waitpid(child, &st, 0) == child && st == 0, "child with our table: %#x", st);
		CHECK(fcntl(500, F_GETFD) == -1, "what the child has closed in our table");
	}
	CHECK(waitpid(see, &st, 0) == see && st == 0, "what another process sees: %#x", st);
	CHECK(lseek(common, 0, SEEK_CUR) == 20, "offset %ld", (long)lseek(common, 0, SEEK_CUR));
	MUST(lseek(common, 50, SEEK_SET));
	CHECK(fcntl(aside, F_GETFD) == FD_CLOEXEC, "what only the thread has closed");
	CHECK(fcntl(300, F_GETFD) == -1, "what only the thread has opened");
	struct stat a, b;
	MUST(fstat(200, &a));
	MUST(fstat(other, &b));
	CHECK(a.st_ino == b.st_ino, "number 200 here");
	MUST(dup2(other, 201));
	step = 1;
	until(&step, 5);
	CHECK(lseek(common, 0, SEEK_CUR) == 60, "an offset that the thread has set");
	step = 99;
	pass();
}
