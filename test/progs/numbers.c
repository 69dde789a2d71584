// Descriptor numbers: many of them, all that the limit allows, only the highest, numbers above
// a limit that was lowered, many that a child shares, and all that the limit allows in the own
// table of a thread. Every number is a file of its own
// whose offset tells which.
//
//	MODE: many N, all N, high N, lowered N, fork N, same N, thread N
#include "prog.h"
#include <sys/resource.h>

static int count;

static void limit(int soft, int hard)
{
	struct rlimit l = {soft, hard};
	MUST(setrlimit(RLIMIT_NOFILE, &l));
}

// every third one is closed on exec.
static int cloexec(int num) { return num % 3 == 0 ? FD_CLOEXEC : 0; }

static void open_at(int num)
{
	int fd = open("data", O_RDONLY | (cloexec(num) ? O_CLOEXEC : 0));
	CHECK(fd >= 0, "open the file for number %d", num);
	if (fd != num) {
		CHECK(dup3(fd, num, cloexec(num) ? O_CLOEXEC : 0) == num, "number %d", num);
		close(fd);
	}
	MUST(lseek(num, 100 + num, SEEK_SET));
}

static void check_at(int num)
{
	CHECK(fcntl(num, F_GETFD) == cloexec(num), "flags of number %d are %d", num, fcntl(num, F_GETFD));
	CHECK(lseek(num, 0, SEEK_CUR) == 100 + num, "offset of number %d is %ld", num, (long)lseek(num, 0, SEEK_CUR));
}

static void check_limits(int soft, int hard)
{
	struct rlimit l;
	MUST(getrlimit(RLIMIT_NOFILE, &l));
	CHECK((int)l.rlim_cur == soft && (int)l.rlim_max == hard, "the limit is %ld/%ld, was %d/%d", (long)l.rlim_cur,
	      (long)l.rlim_max, soft, hard);
}

static void turn(int fd)
{
	char c;
	CHECK(read(fd, &c, 1) == 1, "turn");
}

// the child has the first half of the files too, and as many of its own.
static void forked(void)
{
	int to[2], from[2];
	MUST(pipe(to));
	MUST(pipe(from));
	for (int i = 10; i < count; i++)
		open_at(i);
	pid_t child = MUST(fork());
	if (child == 0) {
		for (int i = 10 + count / 2; i < count; i++) {
			close(i);
			open_at(i);
		}
		MUST(write(from[1], "x", 1));
		turn(to[0]);
		for (int i = 10; i < count; i++)
			check_at(i);
		for (int i = 10; i < count; i++)
			MUST(lseek(i, 7, SEEK_SET));
		_exit(0);
	}
	turn(from[0]);
	ready();
	wait_go();
	for (int i = 10; i < count; i++)
		check_at(i);
	MUST(write(to[1], "x", 1));
	int st;
	CHECK(waitpid(child, &st, 0) == child && st == 0, "child: %#x", st);
	for (int i = 10; i < count; i++) {
		long want = i < 10 + count / 2 ? 7 : 100 + i;
		CHECK(lseek(i, 0, SEEK_CUR) == want, "offset of number %d is %ld, not %ld", i, (long)lseek(i, 0, SEEK_CUR), want);
	}
	pass();
}

// the thread has every number in a table of its own, the process has only the first three.
static volatile int made, look;

static void *thread(void *arg)
{
	(void)arg;
	MUST(unshare(CLONE_FILES));
	for (int i = 3; i < count; i++)
		open_at(i);
	made = 1;
	while (!look)
		nap(5);
	for (int i = 0; i < count; i++)
		if (i >= 3)
			check_at(i);
		else
			CHECK(fcntl(i, F_GETFD) == 0, "flags of number %d", i);
	look = 2;
	for (;;)
		nap(1000);
}

static void threaded(void)
{
	pthread_t t;
	CHECK(pthread_create(&t, NULL, thread, NULL) == 0, "thread");
	while (!made)
		nap(5);
	ready();
	wait_go();
	check_limits(count, count);
	for (int i = 3; i < count; i++)
		CHECK(fcntl(i, F_GETFD) == -1, "number %d is that of the thread", i);
	look = 1;
	while (look != 2)
		nap(5);
	pass();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	CHECK(argc == 6, "MODE N");
	const char *mode = argv[4];
	count = atoi(argv[5]);
	close(MUST(open("data", O_WRONLY | O_CREAT | O_TRUNC, 0644)));
	put("almost", "ready\n"); // to be renamed, which takes no number
	limit(count, count);
	int first = 3, last = count, soft = count;
	if (strcmp(mode, "fork") == 0)
		forked();
	if (strcmp(mode, "thread") == 0)
		threaded();
	if (strcmp(mode, "many") == 0)
		first = 100, last = count - 100;
	if (strcmp(mode, "high") == 0)
		first = count - 1;
	int same = strcmp(mode, "same") == 0;
	for (int i = first; i < last; i++) {
		if (same)
			CHECK(dup3(1, i, cloexec(i) ? O_CLOEXEC : 0) == i, "number %d", i);
		else
			open_at(i);
	}
	if (strcmp(mode, "lowered") == 0)
		limit(soft = 5, 8), count = 8;
	if (strcmp(mode, "high") == 0)
		for (int i = 0; i < 3; i++)
			close(i);
	MUST(rename("almost", ready_path));
	wait_go();
	check_limits(soft, count);
	for (int i = first; i < last; i++) {
		if (same)
			CHECK(fcntl(i, F_GETFD) == cloexec(i), "flags of number %d", i);
		else
			check_at(i);
	}
	for (int i = 0; i < 3; i++)
		CHECK((fcntl(i, F_GETFD) >= 0) == (strcmp(mode, "high") != 0), "number %d", i);
	for (int i = 0; i < 4; i++)
		close(i); // the result needs one
	pass();
}
