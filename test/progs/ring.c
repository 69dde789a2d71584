// A tree of many processes in a ring of pipes: a token goes round through all of them.
#include "prog.h"

#define MAX 256

int main(int argc, char **argv)
{
	begin(argc, argv);
	int n = argc > 4 ? atoi(argv[4]) : 50;
	CHECK(n > 1 && n <= MAX, "%d processes", n);
	int p[MAX][2];
	pid_t pid[MAX];
	for (int i = 0; i < n; i++)
		MUST(pipe2(p[i], O_CLOEXEC));
	for (int i = 1; i < n; i++) {
		pid[i] = MUST(fork());
		if (pid[i] == 0) {
			pid_t me = getpid();
			for (long token; read(p[i][0], &token, sizeof token) == sizeof token;) {
				if (token < 0)
					_exit(getpid() == me ? 0 : 1);
				token += i;
				MUST(write(p[(i + 1) % n][1], &token, sizeof token));
			}
			_exit(2);
		}
	}
	long laps = 0, token = 0, sum = (long)n * (n - 1) / 2;
	int after = 0;
	for (;;) {
		MUST(write(p[1][1], &token, sizeof token));
		MUST(read(p[0][0], &token, sizeof token));
		laps++;
		CHECK(token == laps * sum, "token %ld after %ld laps", token, laps);
		if (laps == 3)
			ready();
		if (laps >= 3 && gone_ahead() && ++after > 3)
			break;
		nap(1);
	}
	for (int i = 1; i < n; i++) {
		int st;
		token = -1;
		MUST(write(p[i][1], &token, sizeof token));
		CHECK(waitpid(pid[i], &st, 0) == pid[i] && st == 0, "process %d: %#x", i, st);
	}
	pass();
}
