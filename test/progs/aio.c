// Contexts of io_setup(2): with events that nobody has read, in the middle and across the end of the ring, read by
// the system call and, as libaio does, from the ring itself; one that was never used, and a thread that waits in
// io_getevents(2). "busy": requests to a disk are under way all the time, with an eventfd that counts them.
#include "prog.h"
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

struct ring {
	unsigned id, nr, head, tail, magic, compat, incompat, header;
	struct io_event events[];
};

static aio_context_t setup(unsigned n)
{
	aio_context_t c = 0;
	MUST(syscall(SYS_io_setup, n, &c));
	return c;
}

static void submit(aio_context_t c, struct iocb *cb)
{
	CHECK(syscall(SYS_io_submit, c, 1L, &cb) == 1, "io_submit: %s", strerror(errno));
}

static void read_at(aio_context_t c, int fd, char *buf, size_t n, long long off, unsigned long data)
{
	struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd, .aio_buf = (unsigned long)buf, .aio_nbytes = n, .aio_offset = off, .aio_data = data};
	submit(c, &cb);
}

static int events(aio_context_t c, long least, long most, struct io_event *e)
{
	int r;
	while ((r = syscall(SYS_io_getevents, c, least, most, e, NULL)) == -1 && errno == EINTR)
		CHECK(0, "io_getevents was interrupted");
	return MUST(r);
}

static aio_context_t waited;
static struct io_event answer;

static void *waiter(void *arg)
{
	CHECK(events(waited, 1, 1, &answer) == 1, "the waiter got nothing");
	return arg;
}

#define DEPTH 8
#define BLOCK 4096

// busy reads blocks past the page cache, each of which has its number in it, until it is to end.
static void busy(void)
{
	static char block[BLOCK] __attribute__((aligned(BLOCK))), got[DEPTH][BLOCK] __attribute__((aligned(BLOCK)));
	int fd = MUST(open("blocks", O_RDWR | O_CREAT | O_TRUNC, 0600)), ev = MUST(eventfd(0, 0));
	for (int i = 0; i < 64; i++) {
		memset(block, i, sizeof block);
		MUST(write(fd, block, sizeof block));
	}
	MUST(fsync(fd));
	int direct = open("blocks", O_RDONLY | O_DIRECT);
	if (direct == -1) // a filesystem without that
		direct = fd;
	aio_context_t c = setup(DEPTH);
	unsigned long n = 0;
	ready();
	do {
		for (int i = 0; i < DEPTH; i++) {
			struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = direct, .aio_buf = (unsigned long)got[i], .aio_nbytes = BLOCK,
				.aio_offset = (n + i) % 64 * BLOCK, .aio_data = i, .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = ev};
			submit(c, &cb);
		}
		struct io_event e[DEPTH];
		int seen = 0;
		while (seen < DEPTH)
			seen += events(c, 1, DEPTH - seen, e + seen);
		for (int i = 0; i < DEPTH; i++) {
			int want = (n + e[i].data) % 64;
			CHECK(e[i].res == BLOCK && got[e[i].data][0] == want && got[e[i].data][BLOCK - 1] == want, "block %d: result %lld, it has %d", want, e[i].res, got[e[i].data][0]);
		}
		uint64_t counted = 0;
		CHECK(read(ev, &counted, 8) == 8 && counted == DEPTH, "the eventfd counted %lu of %d", (unsigned long)counted, DEPTH);
		n += DEPTH;
	} while (!gone_ahead());
	pass();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 4 && strcmp(argv[4], "busy") == 0)
		busy();
	int fd = MUST(open("data", O_RDWR | O_CREAT | O_TRUNC, 0600));
	char buf[64], text[] = "0123456789abcdefghijklmnopqrstuvwxyz";
	MUST(write(fd, text, 36));
	struct io_event e[256];

	aio_context_t fresh = setup(50), middle = setup(10), around = setup(1000), both[2] = {setup(3), setup(128)};
	for (int i = 0; i < 9; i++)
		read_at(middle, fd, buf, 4, i, 100 + i);
	CHECK(events(middle, 4, 4, e) == 4 && e[3].data == 103, "first events");
	struct ring *r = (void *)around;
	unsigned passed = 0;
	while (passed < r->nr - 3) { // and no events are left
		read_at(around, fd, buf, 1, 0, passed);
		CHECK(events(around, 1, 1, e) == 1 && e[0].data == passed, "event %u", passed);
		passed++;
	}
	for (int i = 0; i < 8; i++)
		read_at(around, fd, buf, 5, i, 1000 + i);
	CHECK(r->head == r->nr - 3 && r->tail == 5, "head %u, tail %u of %u", r->head, r->tail, r->nr);
	for (int i = 0; i < 2; i++)
		read_at(both[i], fd, buf, 3, 30, 77 + i);
	aio_context_t full = setup(10);
	read_at(full, fd, buf, 1, 0, 0);
	CHECK(events(full, 1, 1, e) == 1, "the event before");
	int filled = 0;
	for (struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd, .aio_buf = (unsigned long)buf, .aio_nbytes = 2, .aio_data = 0}, *one = &cb;
	     syscall(SYS_io_submit, full, 1L, &one) == 1; cb.aio_data = ++filled)
		;
	CHECK(errno == EAGAIN && filled > 60, "%d events fit", filled);
	aio_context_t sealed = setup(30); // its ring may only be read
	read_at(sealed, fd, buf, 7, 0, 5);
	MUST(mprotect((void *)sealed, 4096, PROT_READ));
	waited = setup(20);
	pthread_t t;
	CHECK(pthread_create(&t, NULL, waiter, &waited) == 0, "pthread_create");
	nap(100);
	ready();
	wait_go();

	CHECK(events(middle, 0, 256, e) == 5, "events in the middle");
	for (int i = 0; i < 5; i++)
		CHECK(e[i].data == 104U + i && e[i].res == 4 && e[i].res2 == 0, "event %d: data %llu, result %lld", i, e[i].data, e[i].res);
	CHECK(r->head == r->nr - 3 && r->tail == 5 && r->magic == 0xa10a10a1, "head %u, tail %u of %u", r->head, r->tail, r->nr);
	for (int i = 0; i < 8; i++) { // as libaio: without a system call
		struct io_event *at = &r->events[r->head];
		CHECK(at->data == 1000U + i && at->res == 5, "event %d in the ring: data %llu, result %lld", i, at->data, at->res);
		r->head = (r->head + 1) % r->nr;
	}
	CHECK(events(sealed, 1, 256, e) == 1 && e[0].data == 5 && e[0].res == 7, "the event of a ring that is only read");
	CHECK(events(full, 0, 256, e) == filled, "not %d events of the full one", filled);
	for (int i = 0; i < filled; i++)
		CHECK(e[i].data == (unsigned)i && e[i].res == 2, "event %d of the full one: %llu", i, e[i].data);
	for (int i = 0; i < 2; i++)
		CHECK(events(both[i], 1, 256, e) == 1 && e[0].data == 77U + i && e[0].res == 3, "event of %d", i);
	// They work on, once around and with data.
	aio_context_t all[] = {fresh, middle, around, both[0], both[1]};
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
		for (int k = 0; k < 2500; k++) {
			memset(buf, 0, sizeof buf);
			read_at(all[i], fd, buf, 6, k % 30, k);
			CHECK(events(all[i], 1, 256, e) == 1 && e[0].data == (unsigned)k && e[0].res == 6 && memcmp(buf, text + k % 30, 6) == 0, "context %u, request %d", i, k);
		}
	int ev = MUST(eventfd(0, 0));
	struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = fd, .aio_buf = (unsigned long)"tail", .aio_nbytes = 4, .aio_offset = 36, .aio_data = 4711, .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = ev};
	submit(waited, &cb);
	pthread_join(t, NULL);
	CHECK(answer.data == 4711 && answer.res == 4, "the waiter got data %llu, result %lld", answer.data, answer.res);
	uint64_t n = 0;
	CHECK(read(ev, &n, 8) == 8 && n == 1, "the eventfd");
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
		MUST(syscall(SYS_io_destroy, all[i]));
	CHECK(syscall(SYS_io_destroy, fresh) == -1, "it is destroyed twice");
	pass();
}
