// A tree with sessions, process groups and zombies: pids, parents, groups, sessions and exit
// codes are what they were, and a zombie's SIGCHLD does not come twice.
#include "prog.h"
#include <stdatomic.h>

enum { A, A1, A2, B, B1, B2, LEAD, MEMBER, Z7, ZKILL, N };

struct who {
	_Atomic pid_t pid;
	_Atomic int up; // it has become what it will be
	pid_t ppid, pgid, sid;
};

static struct {
	struct who w[N];
	_Atomic int go, good;
} *sh;

static volatile sig_atomic_t chld;

static void on_chld(int sig)
{
	(void)sig;
	chld++;
}

static void note(int me)
{
	struct who *w = &sh->w[me];
	w->ppid = getppid();
	w->pgid = getpgid(0);
	w->sid = getsid(0);
	w->pid = getpid();
	w->up = 1;
}

static void same(int me)
{
	struct who *w = &sh->w[me];
	CHECK(w->pid == getpid(), "member %d: pid %d was %d", me, getpid(), w->pid);
	CHECK(w->ppid == getppid(), "member %d: parent %d was %d", me, getppid(), w->ppid);
	CHECK(w->pgid == getpgid(0), "member %d: group %d was %d", me, getpgid(0), w->pgid);
	CHECK(w->sid == getsid(0), "member %d: session %d was %d", me, getsid(0), w->sid);
	sh->good++;
}

static void live(int me)
{
	note(me);
	while (!sh->go)
		nap(5);
	same(me);
	while (sh->go < 2)
		nap(5);
	_exit(me);
}

// member starts member me of the tree and returns its pid; run, if there is one, prepares it.
static pid_t member(int me, void (*run)(void))
{
	pid_t pid = MUST(fork());
	if (pid == 0) {
		if (run)
			run();
		live(me);
	}
	while (!sh->w[me].up)
		nap(1);
	return pid;
}

static void own_group(void) { MUST(setpgid(0, 0)); }

static void run_a(void)
{
	MUST(setpgid(0, 0));
	sh->w[A].pid = getpid();
	member(A1, NULL);
	member(A2, own_group);
}

static void run_b(void)
{
	MUST(setsid());
	member(B1, NULL);
	member(B2, own_group);
}

static void group_lead(void) { MUST(setpgid(0, sh->w[LEAD].pid)); }

int main(int argc, char **argv)
{
	begin(argc, argv);
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t parent = getppid(), me = getpid(), pgid = getpgid(0), sid = getsid(0);
	pid_t a = member(A, run_a), b = member(B, run_b);

	// A group whose leader is a zombie.
	pid_t lead = MUST(fork());
	if (lead == 0) {
		MUST(setpgid(0, 0));
		while (sh->w[MEMBER].pid == 0)
			nap(1);
		_exit(33);
	}
	while (getpgid(lead) != lead)
		nap(1);
	sh->w[LEAD].pid = lead;
	pid_t m = member(MEMBER, group_lead);
	pid_t z7 = MUST(fork());
	if (z7 == 0)
		_exit(7);
	pid_t zkill = MUST(fork());
	if (zkill == 0)
		for (;;)
			pause();
	MUST(kill(zkill, SIGKILL));
	siginfo_t si;
	pid_t zombies[] = {lead, z7, zkill};
	for (int i = 0; i < 3; i++) // wait for the end and leave the zombie
		MUST(waitid(P_PID, zombies[i], &si, WEXITED | WNOWAIT));
	signal(SIGCHLD, on_chld);
	ready();
	wait_go();

	CHECK(chld == 0, "%d SIGCHLD came", chld);
	CHECK(getpid() == me && getpgid(0) == pgid && getsid(0) == sid, "pid %d group %d session %d", getpid(), getpgid(0), getsid(0));
	if (!restored())
		CHECK(getppid() == parent, "parent %d was %d", getppid(), parent);
	sh->go = 1;
	for (int i = 0; sh->good < 7; i++) {
		CHECK(access(result_path, F_OK) != 0, "a member failed");
		nap(5);
	}
	CHECK(getpgid(lead) == lead && getpgid(m) == lead, "the group of the dead leader: %d %d", getpgid(lead), getpgid(m));
	int st;
	CHECK(waitpid(z7, &st, WNOHANG) == z7 && WIFEXITED(st) && WEXITSTATUS(st) == 7, "zombie: %#x", st);
	CHECK(waitpid(zkill, &st, WNOHANG) == zkill && WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL, "killed zombie: %#x", st);
	CHECK(waitpid(lead, &st, WNOHANG) == lead && WIFEXITED(st) && WEXITSTATUS(st) == 33, "dead leader: %#x", st);
	CHECK(waitpid(-1, &st, WNOHANG) == 0, "another child ended: %#x", st);
	sh->go = 2;
	CHECK(waitpid(a, &st, 0) == a && WEXITSTATUS(st) == A, "A: %#x", st);
	CHECK(waitpid(b, &st, 0) == b && WEXITSTATUS(st) == B, "B: %#x", st);
	CHECK(waitpid(m, &st, 0) == m && WEXITSTATUS(st) == MEMBER, "MEMBER: %#x", st);
	CHECK(waitpid(-1, &st, WNOHANG | __WALL) == -1 && errno == ECHILD, "a child too many");
	pass();
}
