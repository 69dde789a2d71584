// A computation that SIGUSR1 interrupts, with a handler that takes its time. A checkpoint that
// is killed leaves the signal pending, and then the handler returns into what it left. With
// "alt" the handler runs on an alternate stack.
#include "prog.h"

static void on_usr1(int sig)
{
	(void)sig;
	struct timespec end, now;
	clock_gettime(CLOCK_MONOTONIC, &end);
	do {
		nap(50);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (!gone_ahead() && now.tv_sec < end.tv_sec + 3);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct sigaction sa = {.sa_handler = on_usr1};
	if (argc > 4) {
		stack_t alt = {.ss_sp = malloc(65536), .ss_size = 65536};
		MUST(sigaltstack(&alt, NULL));
		sa.sa_flags = SA_ONSTACK;
	}
	MUST(sigaction(SIGUSR1, &sa, NULL));
	uint64_t want = 0;
	for (uint64_t i = 0; i < 1000; i++)
		want = mix(want ^ i);
	ready();
	for (long n = 0;; n++) {
		uint64_t got = 0;
		for (uint64_t i = 0; i < 1000; i++)
			got = mix(got ^ i);
		CHECK(got == want, "round %ld: computed %#lx, not %#lx", n, (unsigned long)got, (unsigned long)want);
		if (n % 1000 == 0 && gone_ahead())
			pass();
	}
}
