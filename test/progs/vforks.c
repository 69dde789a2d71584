// A program that calls vfork again and again, and whose children take a moment before they
// call exec, as make and the compiler driver do.
#include "prog.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	long n = 0;
	for (int after = 0; after < 3; n++) {
		pid_t pid = vfork();
		if (pid == 0) {
			nap(30);
			execl("/bin/sh", "sh", "-c", "exit 3", NULL);
			_exit(4);
		}
		int st;
		CHECK(pid > 0 && waitpid(pid, &st, 0) == pid && WEXITSTATUS(st) == 3, "child %ld: %#x", n, st);
		if (n == 3)
			ready();
		if (n > 3 && gone_ahead())
			after++;
	}
	pass();
}
