// The smallest program that does something: it counts, and every count is checked.
#include "prog.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	pid_t me = getpid();
	volatile uint64_t n = 0, shadow = ~0ull;
	for (;;) {
		n++;
		shadow--;
		CHECK(n + shadow == ~0ull, "n %lu shadow %lu", (unsigned long)n, (unsigned long)shadow);
		if (n == 1000)
			ready();
		if (n % 1000 == 0 && gone_ahead())
			break;
		if (n % 100000 == 0)
			CHECK(getpid() == me, "pid %d was %d", getpid(), me);
	}
	pass();
}
