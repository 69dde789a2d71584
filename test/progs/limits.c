// What belongs to a task and is neither memory nor a file: limits, umask, cwd, names, nice
// value and scheduling policy per thread, affinity, io priority, timer slack, oom_score_adj,
// personality and the prctl settings.
#include "prog.h"
#include <stdatomic.h>
#include <sys/personality.h>
#include <sys/resource.h>

#define IOPRIO(class, data) ((class) << 13 | (data))

struct state {
	struct rlimit lim[RLIM_NLIMITS];
	mode_t mask;
	char cwd[512], name[16];
	int nice, policy, rtprio, ioprio, slack, oom, persona, subreaper, thp, coredump;
	cpu_set_t cpus;
};

static int number(const char *path, int base)
{
	char b[64] = "";
	int fd = MUST(open(path, O_RDONLY));
	MUST(read(fd, b, sizeof b - 1));
	close(fd);
	return (int)strtol(b, NULL, base);
}

static void write_number(const char *path, const char *text)
{
	int fd = MUST(open(path, O_WRONLY));
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static struct state look(void)
{
	struct state s;
	memset(&s, 0, sizeof s);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		MUST(getrlimit(i, &s.lim[i]));
	s.mask = umask(0);
	umask(s.mask);
	MUST(getcwd(s.cwd, sizeof s.cwd) ? 0 : -1);
	prctl(PR_GET_NAME, s.name);
	errno = 0;
	s.nice = getpriority(PRIO_PROCESS, gettid());
	struct sched_param sp;
	s.policy = sched_getscheduler(0);
	sched_getparam(0, &sp);
	s.rtprio = sp.sched_priority;
	s.ioprio = syscall(SYS_ioprio_get, 1, 0);
	s.slack = prctl(PR_GET_TIMERSLACK);
	s.oom = number("/proc/self/oom_score_adj", 10);
	s.coredump = number("/proc/self/coredump_filter", 16);
	s.persona = personality(0xffffffff);
	prctl(PR_GET_CHILD_SUBREAPER, &s.subreaper);
	s.thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	MUST(sched_getaffinity(0, sizeof s.cpus, &s.cpus));
	return s;
}

static void compare(const struct state *a, const struct state *b, const char *who)
{
	for (int i = 0; i < RLIM_NLIMITS; i++)
		CHECK(a->lim[i].rlim_cur == b->lim[i].rlim_cur && a->lim[i].rlim_max == b->lim[i].rlim_max,
		      "%s: limit %d: %ld/%ld was %ld/%ld", who, i, (long)b->lim[i].rlim_cur, (long)b->lim[i].rlim_max,
		      (long)a->lim[i].rlim_cur, (long)a->lim[i].rlim_max);
	CHECK(a->mask == b->mask, "%s: umask %o was %o", who, b->mask, a->mask);
	CHECK(strcmp(a->cwd, b->cwd) == 0, "%s: cwd %s was %s", who, b->cwd, a->cwd);
	CHECK(strcmp(a->name, b->name) == 0, "%s: name %s was %s", who, b->name, a->name);
#define SAME(f) CHECK(a->f == b->f, "%s: " #f " %d was %d", who, b->f, a->f)
	SAME(nice);
	SAME(policy);
	SAME(rtprio);
	SAME(ioprio);
	SAME(slack);
	SAME(oom);
	SAME(coredump);
	SAME(persona);
	SAME(subreaper);
	SAME(thp);
	CHECK(CPU_EQUAL(&a->cpus, &b->cpus), "%s: affinity of %d cpus was %d", who, CPU_COUNT(&b->cpus), CPU_COUNT(&a->cpus));
}

static _Atomic int up, go;

static void *thread(void *arg)
{
	int me = (int)(intptr_t)arg;
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	struct sched_param sp = {.sched_priority = me == 0 ? 3 : 0};
	if (me == 0)
		MUST(sched_setscheduler(0, SCHED_RR, &sp));
	if (me == 1) {
		MUST(sched_setscheduler(0, SCHED_IDLE, &sp));
		MUST(sched_setaffinity(0, sizeof one, &one));
	}
	if (me == 2) {
		MUST(setpriority(PRIO_PROCESS, gettid(), -4));
		MUST(prctl(PR_SET_TIMERSLACK, 70000));
		MUST(syscall(SYS_ioprio_set, 1, 0, IOPRIO(3, 0)));
	}
	prctl(PR_SET_NAME, me == 0 ? "round robin" : me == 1 ? ") R 1 (odd" : "with a\nnewline");
	struct state before = look(), now;
	up++;
	while (!go)
		nap(5);
	now = look();
	compare(&before, &now, me == 0 ? "thread 0" : me == 1 ? "thread 1" : "thread 2");
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	MUST(mkdir("a directory", 0755));
	MUST(chdir("a directory"));
	umask(037);
	MUST(personality(ADDR_NO_RANDOMIZE));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	MUST(prctl(PR_SET_TIMERSLACK, 60000));
	write_number("/proc/self/oom_score_adj", "321");
	write_number("/proc/self/coredump_filter", "0x3f");
	struct rlimit l = {100, 200};
	MUST(setrlimit(RLIMIT_NOFILE, &l));
	l = (struct rlimit){1 << 20, 2 << 20};
	MUST(setrlimit(RLIMIT_STACK, &l));
	l = (struct rlimit){0, 4096};
	MUST(setrlimit(RLIMIT_CORE, &l));
	l = (struct rlimit){12345, 23456};
	MUST(setrlimit(RLIMIT_SIGPENDING, &l));
	pthread_t t[3];
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&t[i], NULL, thread, (void *)(intptr_t)i) == 0, "thread");
	while (up < 3)
		nap(1);
	MUST(setpriority(PRIO_PROCESS, 0, 7));
	struct sched_param sp = {0};
	MUST(sched_setscheduler(0, SCHED_BATCH, &sp));
	MUST(syscall(SYS_ioprio_set, 1, 0, IOPRIO(2, 6)));
	prctl(PR_SET_NAME, "limited");
	struct state before = look();
	ready();
	wait_go();
	struct state now = look();
	compare(&before, &now, "main");
	go = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	pass();
}
