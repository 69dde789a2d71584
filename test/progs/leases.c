// Leases of two processes, with the signals that tell of somebody who opens the file.
#include "prog.h"

static int writes, reads, told[2], came[2];
static volatile sig_atomic_t sigio_fd = -1, sigio;

static void on_signal(int sig, siginfo_t *si, void *uc)
{
	(void)uc;
	sigio = sig;
	sigio_fd = si->si_fd;
}

static void catch(int sig)
{
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
	MUST(sigaction(sig, &sa, NULL));
}

// broken opens a file that is leased, is refused, and waits for the signal.
static void broken(const char *name, int flags, int fd, int sig)
{
	sigio = 0;
	CHECK(open(name, flags | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "open of %s", name);
	while (!sigio)
		nap(5);
	CHECK(sigio == sig && (sig == SIGIO || sigio_fd == fd), "signal %d of fd %d for %s", sigio, sigio_fd, name);
	CHECK(fcntl(fd, F_GETLEASE) != F_WRLCK, "the lease is not being broken");
	MUST(fcntl(fd, F_SETLEASE, F_UNLCK));
	close(MUST(open(name, flags | O_NONBLOCK)));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	catch(SIGIO);
	catch(SIGRTMIN + 1);
	MUST(pipe(told));
	MUST(pipe(came));
	writes = MUST(open("writes", O_RDWR | O_CREAT, 0600));
	close(MUST(open("reads", O_RDWR | O_CREAT, 0600)));
	MUST(fcntl(writes, F_SETLEASE, F_WRLCK));
	MUST(fcntl(writes, F_SETSIG, SIGRTMIN + 1));
	pid_t child = MUST(fork());
	if (child == 0) {
		char c;
		close(writes); // the lease is the description's
		reads = MUST(open("reads", O_RDONLY));
		MUST(fcntl(reads, F_SETLEASE, F_RDLCK));
		MUST(write(came[1], "c", 1));
		while (read(told[0], &c, 1) != 1)
			;
		CHECK(fcntl(reads, F_GETLEASE) == F_RDLCK, "the child's lease");
		CHECK(fcntl(reads, F_GETOWN) == getpid(), "the owner of the child's lease is %d", fcntl(reads, F_GETOWN));
		close(MUST(open("reads", O_RDONLY))); // breaks nothing
		broken("reads", O_RDWR, reads, SIGIO);
		_exit(0);
	}
	char c;
	CHECK(read(came[0], &c, 1) == 1, "child");
	ready();
	wait_go();
	CHECK(fcntl(writes, F_GETLEASE) == F_WRLCK, "the lease is %d", fcntl(writes, F_GETLEASE));
	CHECK(fcntl(writes, F_GETOWN) == getpid() && fcntl(writes, F_GETSIG) == SIGRTMIN + 1, "owner %d", fcntl(writes, F_GETOWN));
	broken("writes", O_RDONLY, writes, SIGRTMIN + 1);
	MUST(write(told[1], "g", 1));
	int st;
	CHECK(waitpid(child, &st, 0) == child && st == 0, "child: %#x", st);
	pass();
}
