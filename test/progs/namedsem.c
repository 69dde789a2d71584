// Named semaphores: sem_open(3) maps a file under a temporary name, links it to the name and unlinks the
// temporary one, so that the mapping is of a file that was deleted, though sem.NAME leads to it. Who opens the
// name after a restore has to share it with the restored process.
//
// With "post NAME" instead of the usual arguments it is that other process.
#include "prog.h"
#include <semaphore.h>

static sem_t *get(const char *name, const char *which, int flags)
{
	char b[256];
	snprintf(b, sizeof b, "/%s-%s", name, which);
	sem_t *s = sem_open(b, flags, 0600, 0);
	CHECK(s != SEM_FAILED, "sem_open %s: %s", b, strerror(errno));
	return s;
}

static void await(sem_t *s, const char *what)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 30;
	int r;
	while ((r = sem_timedwait(s, &ts)) == -1 && errno == EINTR)
		;
	CHECK(r == 0, "wait for %s: %s", what, strerror(errno));
}

static void drop(const char *name, const char *which)
{
	char b[256];
	snprintf(b, sizeof b, "/%s-%s", name, which);
	sem_unlink(b);
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "post") == 0) {
		result_path = "/dev/stdout";
		sem_t *ask = get(argv[2], "ask", 0), *answer = get(argv[2], "answer", 0);
		await(ask, "the question");
		MUST(sem_post(answer));
		pass();
	}
	begin(argc, argv);
	const char *name = argv[4];
	drop(name, "ask");
	drop(name, "answer");
	sem_t *ask = get(name, "ask", O_CREAT | O_EXCL), *answer = get(name, "answer", O_CREAT | O_EXCL);
	sem_t *same = get(name, "ask", 0);
	CHECK(same == ask, "the same name is mapped twice");
	for (int i = 0; i < 3; i++)
		MUST(sem_post(answer));
	pid_t child = MUST(fork());
	if (child == 0) {
		await(ask, "the parent");
		await(ask, "the parent");
		_exit(0);
	}
	MUST(sem_post(ask));
	ready();
	wait_go();

	int v;
	MUST(sem_getvalue(answer, &v));
	CHECK(v == 3, "the value was 3 and is %d", v);
	MUST(sem_post(ask)); // the child shares it still
	int st;
	CHECK(MUST(waitpid(child, &st, 0)) == child && st == 0, "the child ended with %#x", st);
	for (int i = 0; i < 3; i++)
		await(answer, "what was there");
	if (argc > 5) { // somebody else has opened the names since
		MUST(sem_post(ask));
		await(answer, "the other process");
	}
	MUST(sem_close(ask));
	drop(name, "ask");
	drop(name, "answer");
	pass();
}
