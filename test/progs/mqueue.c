// POSIX message queues: one with a name, one whose name is gone, a receiver that waits in each.
#include "prog.h"
#include <mqueue.h>
#include <signal.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
	begin(argc, argv);
	char name[64], lost[64], buf[128];
	snprintf(name, sizeof name, "/ckptfs-test-%d", getpid());
	snprintf(lost, sizeof lost, "/ckptfs-test-%d-lost", getpid());
	struct mq_attr a = {.mq_maxmsg = 3, .mq_msgsize = 100}, is;
	mqd_t to = MUST(mq_open(name, O_CREAT | O_EXCL | O_WRONLY | O_NONBLOCK, 0620, &a));
	a.mq_maxmsg = 7;
	mqd_t gone = MUST(mq_open(lost, O_CREAT | O_EXCL | O_RDWR, 0600, &a));
	mqd_t from = MUST(mq_open(name, O_RDONLY));
	mqd_t answer = MUST(mq_open(lost, O_RDONLY | O_NONBLOCK));
	MUST(mq_unlink(lost));
	// A third has messages, one of them of several pages, and its name is gone.
	static char page[8192], got[8192];
	for (unsigned i = 0; i < sizeof page; i++)
		page[i] = i * 13 + i / 256;
	strcat(lost, "2");
	struct mq_attr large = {.mq_maxmsg = 5, .mq_msgsize = sizeof page};
	mqd_t full = MUST(mq_open(lost, O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK, 0600, &large));
	MUST(mq_unlink(lost));
	MUST(mq_send(full, "low", 3, 1));
	MUST(mq_send(full, page, sizeof page, 5));
	MUST(mq_send(full, "", 0, 5));
	MUST(mq_send(full, "lower", 5, 0));
	MUST(mq_send(full, "low too", 7, 1));
	CHECK(mq_send(full, "no", 2, 1) == -1 && errno == EAGAIN, "it is not full");
	// And with a fourth we are registered for a signal.
	strcat(lost, "3");
	mqd_t bell = MUST(mq_open(lost, O_CREAT | O_EXCL | O_RDWR, 0600, NULL)), ring = dup(bell);
	MUST(mq_unlink(lost));
	sigset_t usr2;
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	MUST(sigprocmask(SIG_BLOCK, &usr2, NULL));
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2, .sigev_value = {.sival_ptr = (void *)0x123456789abcdef0}};
	MUST(mq_notify(bell, &ev));
	pid_t child = MUST(fork());
	if (child == 0) {
		unsigned prio;
		for (;;) {
			ssize_t n = mq_receive(from, buf, sizeof buf, &prio);
			if (n < 0 && errno == EINTR)
				continue;
			CHECK(n == 5 && prio == 9 && memcmp(buf, "hello", 5) == 0, "child: received %zd bytes", n);
			MUST(mq_send(gone, "thanks", 6, 2));
			_exit(0);
		}
	}
	ready();
	wait_go();
	CHECK(mq_getattr(to, &is) == 0 && is.mq_maxmsg == 3 && is.mq_msgsize == 100 && is.mq_curmsgs == 0 && is.mq_flags == O_NONBLOCK, "attributes of the named one");
	CHECK(mq_getattr(gone, &is) == 0 && is.mq_maxmsg == 7 && is.mq_flags == 0, "attributes of the one without a name");
	CHECK(mq_receive(answer, buf, sizeof buf, NULL) == -1 && errno == EAGAIN, "it has a message");
	struct stat st;
	MUST(fstat(to, &st));
	CHECK((st.st_mode & 0777) == (0620 & ~022), "mode %o", st.st_mode);
	CHECK(mq_open(lost, O_RDONLY) == -1 && errno == ENOENT, "the lost name is there");
	CHECK(mq_send(full, "no", 2, 1) == -1 && errno == EAGAIN, "it is not full any more");
	unsigned p;
	siginfo_t info;
	CHECK(mq_notify(ring, &ev) == -1 && errno == EBUSY, "the registration is gone");
	MUST(mq_send(ring, "x", 1, 0));
	CHECK(sigwaitinfo(&usr2, &info) == SIGUSR2 && info.si_code == SI_MESGQ && info.si_pid == getpid() && info.si_value.sival_ptr == (void *)0x123456789abcdef0, "the signal");
	CHECK(mq_receive(full, got, sizeof got, &p) == sizeof page && p == 5 && memcmp(got, page, sizeof page) == 0, "the long one");
	CHECK(mq_receive(full, got, sizeof got, &p) == 0 && p == 5, "the empty one");
	CHECK(mq_receive(full, got, sizeof got, &p) == 3 && p == 1 && memcmp(got, "low", 3) == 0, "the low one");
	CHECK(mq_receive(full, got, sizeof got, &p) == 7 && p == 1 && memcmp(got, "low too", 7) == 0, "the other low one");
	CHECK(mq_receive(full, got, sizeof got, &p) == 5 && p == 0 && memcmp(got, "lower", 5) == 0, "the lowest");
	CHECK(mq_receive(full, got, sizeof got, &p) == -1 && errno == EAGAIN, "one more");
	MUST(mq_send(to, "hello", 5, 9));
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0, "child ended with %#x", status);
	unsigned prio;
	CHECK(mq_receive(answer, buf, sizeof buf, &prio) == 6 && prio == 2, "no answer");
	MUST(mq_unlink(name));
	pass();
}
