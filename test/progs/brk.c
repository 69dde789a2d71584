// The break of a process and of its child goes on growing and shrinking, generation after
// generation: where it stands, what lies below it, and the child answers.
#include "prog.h"

static char *base;
static size_t grown;
static const size_t step = 256 << 10, first = 3 << 20;

// turn moves the break up and every eighth time down again, and checks what lies below it.
static void turn(long n)
{
	char *end = sbrk(0);
	CHECK(end == base + first + grown, "turn %ld: the break is %p, should be %p", n, end, base + first + grown);
	for (size_t i = 0; i < first; i += 4096)
		CHECK(base[i] == 7, "turn %ld: %zu is %d", n, i, base[i]);
	for (size_t i = 0; i < grown; i += step)
		CHECK(base[first + i] == (char)(i / step + 1), "turn %ld: block %zu is %d", n, i / step, base[first + i]);
	if (n % 8 == 7) {
		CHECK(brk(base + first) == 0, "brk");
		grown = 0;
		return;
	}
	char *q = sbrk(step);
	CHECK(q == end, "turn %ld: sbrk gave %p, not %p", n, q, end);
	memset(q, (int)(grown / step + 1), step);
	grown += step;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int ask[2], answer[2];
	MUST(pipe(ask));
	MUST(pipe(answer));
	base = sbrk(first);
	memset(base, 7, first);
	pid_t child = MUST(fork());
	if (child == 0) {
		char c;
		close(ask[1]);
		for (long n = 0; read(ask[0], &c, 1) == 1; n++) {
			turn(n);
			MUST(write(answer[1], "x", 1));
		}
		_exit(0);
	}
	close(ask[0]);
	ready();
	for (long n = 0;; n++) {
		char c = 0;
		turn(n);
		MUST(write(ask[1], "?", 1));
		CHECK(read(answer[0], &c, 1) == 1 && c == 'x', "the child does not answer");
		if (gone_ahead())
			break;
		nap(5);
	}
	close(ask[1]);
	int st;
	MUST(waitpid(child, &st, 0));
	CHECK(st == 0, "child: %#x", st);
	pass();
}
