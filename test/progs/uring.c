// io_uring at rest, by raw system calls: rings of all kinds whose memory holds completions that nobody has read and requests
// that nobody has submitted.
#include "prog.h"

#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

struct ring {
	int fd;
	struct io_uring_params p;
	char *mem;
	char *sqes;
	unsigned head, tail; // what the program remembers, as liburing does
	uint64_t next;       // user_data of the next request
	uint64_t due;        // and of the next completion
};

#define WORD(r, off) ((unsigned *)((r)->mem + (off)))

static size_t sqe_size(struct ring *r) { return r->p.flags & IORING_SETUP_SQE128 ? 128 : 64; }
static size_t cqe_size(struct ring *r) { return r->p.flags & IORING_SETUP_CQE32 ? 32 : 16; }

static void make(struct ring *r, unsigned entries, unsigned flags)
{
	memset(r, 0, sizeof *r);
	r->p.flags = flags;
	r->p.sq_thread_idle = 50;
	r->fd = MUST(syscall(SYS_io_uring_setup, entries, &r->p));
	size_t a = r->p.cq_off.cqes + r->p.cq_entries * cqe_size(r), b = r->p.sq_off.array + r->p.sq_entries * 4;
	r->mem = MUST(mmap(NULL, a > b ? a : b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING));
	r->sqes = MUST(mmap(NULL, r->p.sq_entries * sqe_size(r), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES));
	if (!(flags & IORING_SETUP_NO_SQARRAY))
		for (unsigned i = 0; i < r->p.sq_entries; i++)
			WORD(r, r->p.sq_off.array)[i] = i;
}

static struct io_uring_sqe *add(struct ring *r, int op, int fd, void *addr, unsigned len)
{
	unsigned mask = *WORD(r, r->p.sq_off.ring_mask);
	CHECK(*WORD(r, r->p.sq_off.tail) == r->tail, "tail %u, remembered %u", *WORD(r, r->p.sq_off.tail), r->tail);
	struct io_uring_sqe *s = (void *)(r->sqes + (r->tail & mask) * sqe_size(r));
	memset(s, 0, sqe_size(r));
	s->opcode = op;
	s->fd = fd;
	s->addr = (uintptr_t)addr;
	s->len = len;
	s->user_data = r->next++;
	__atomic_store_n(WORD(r, r->p.sq_off.tail), ++r->tail, __ATOMIC_RELEASE);
	return s;
}

static void submit(struct ring *r, unsigned n, unsigned wait)
{
	unsigned flags = wait ? IORING_ENTER_GETEVENTS : 0;
	if (r->p.flags & IORING_SETUP_SQPOLL)
		flags |= IORING_ENTER_SQ_WAKEUP;
	CHECK(syscall(SYS_io_uring_enter, r->fd, n, wait, flags, NULL, 0) == n, "submit %u", n);
}

// reap takes one completion and returns its result.
static int reap(struct ring *r)
{
	unsigned *tail = WORD(r, r->p.cq_off.tail);
	for (int i = 0; __atomic_load_n(tail, __ATOMIC_ACQUIRE) == r->head; i++) {
		CHECK(i < 500, "completion %lu does not come", (unsigned long)r->due);
		if (r->p.flags & IORING_SETUP_SQPOLL)
			nap(10);
		else
			syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	}
	struct io_uring_cqe *c = (void *)(r->mem + r->p.cq_off.cqes + (r->head & *WORD(r, r->p.cq_off.ring_mask)) * cqe_size(r));
	CHECK(c->user_data == r->due, "completion of %lu, not %lu", (unsigned long)c->user_data, (unsigned long)r->due);
	r->due++;
	int res = c->res;
	__atomic_store_n(WORD(r, r->p.cq_off.head), ++r->head, __ATOMIC_RELEASE);
	return res;
}

// work makes requests and takes what they complete.
static void work(struct ring *r, int n)
{
	for (int i = 0; i < n; i++) {
		add(r, IORING_OP_NOP, -1, NULL, 0);
		submit(r, 1, 1);
		CHECK(reap(r) == 0, "a NOP failed");
	}
}

enum { UNREAD = 3, UNSUBMITTED = 2 };

// leave leaves completions unread and requests unsubmitted.
static void leave(struct ring *r)
{
	for (int i = 0; i < UNREAD; i++)
		add(r, IORING_OP_NOP, -1, NULL, 0);
	submit(r, UNREAD, UNREAD);
	if (r->p.flags & IORING_SETUP_SQPOLL) {
		for (int i = 0; *WORD(r, r->p.cq_off.tail) - r->head < UNREAD; i++) {
			CHECK(i < 500, "completions do not come");
			nap(10);
		}
		return; // its thread would take what is not submitted
	}
	for (int i = 0; i < UNSUBMITTED; i++)
		add(r, IORING_OP_NOP, -1, NULL, 0);
}

static void carry_on(struct ring *r)
{
	for (int i = 0; i < UNREAD; i++)
		CHECK(reap(r) == 0, "unread completion %d", i);
	if (!(r->p.flags & IORING_SETUP_SQPOLL)) {
		submit(r, UNSUBMITTED, UNSUBMITTED);
		for (int i = 0; i < UNSUBMITTED; i++)
			CHECK(reap(r) == 0, "request %d", i);
	}
	work(r, 100);
}

static void basic(unsigned flags)
{
	struct ring a, b;
	make(&a, 8, flags);
	make(&b, 64, flags);
	work(&a, 1001);
	work(&b, 77);
	leave(&a);
	leave(&b);
	ready();
	wait_go();
	carry_on(&a);
	carry_on(&b);
	if (flags & IORING_SETUP_SINGLE_ISSUER && fork() == 0) {
		int n = syscall(SYS_io_uring_enter, a.fd, 1, 0, 0, NULL, 0);
		_exit(n < 0 && errno == EEXIST ? 7 : 8);
	}
	int st;
	if (flags & IORING_SETUP_SINGLE_ISSUER)
		CHECK(wait(&st) > 0 && WEXITSTATUS(st) == 7, "another process may use a ring of one issuer: %#x", st);
}

// registered has files, buffers and an eventfd registered.
static void registered(void)
{
	struct ring r;
	make(&r, 16, IORING_SETUP_SUBMIT_ALL);
	char name[] = "uring-XXXXXX";
	int file = MUST(mkstemp(name)), ev = MUST(eventfd(0, EFD_NONBLOCK));
	unlink(name);
	int files[3] = {-1, file, -1};
	char *buf = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	struct iovec iov = {buf, 8192};
	MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES, files, 3));
	MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &iov, 1));
	MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_EVENTFD, &ev, 1));
	strcpy(buf, "one");
	work(&r, 5);
	struct io_uring_sqe *s = add(&r, IORING_OP_WRITE_FIXED, 1, buf, 3);
	s->flags = IOSQE_FIXED_FILE;
	submit(&r, 1, 1);
	CHECK(reap(&r) == 3, "write");
	ready();
	wait_go();
	uint64_t n;
	CHECK(read(ev, &n, sizeof n) == sizeof n && n == 6, "the eventfd counts %lu", (unsigned long)n);
	memset(buf, 0, 16);
	s = add(&r, IORING_OP_READ_FIXED, 1, buf + 4096, 3);
	s->flags = IOSQE_FIXED_FILE;
	submit(&r, 1, 1);
	CHECK(reap(&r) == 3 && memcmp(buf + 4096, "one", 3) == 0, "read with what is registered");
	CHECK(read(ev, &n, sizeof n) == sizeof n && n == 1, "the eventfd counts %lu afterwards", (unsigned long)n);
	s = add(&r, IORING_OP_READ_FIXED, 0, buf, 3);
	s->flags = IOSQE_FIXED_FILE;
	submit(&r, 1, 1);
	CHECK(reap(&r) == -EBADF, "an empty place is not empty");
	int dup = 1;
	CHECK(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_EVENTFD, &dup, 1) == -1 && errno == EBUSY, "no eventfd is registered");
}

// shared has a ring that parent and child use by turns, and a worker of the kernel that is idle.
static void shared(void)
{
	struct ring r;
	make(&r, 8, 0);
	work(&r, 10);
	char c;
	int p[2], q[2];
	MUST(pipe(p));
	MUST(pipe(q));
	MUST(write(p[1], "x", 1));
	struct io_uring_sqe *s = add(&r, IORING_OP_READ, p[0], &c, 1);
	s->flags = IOSQE_ASYNC; // makes a worker
	submit(&r, 1, 1);
	CHECK(reap(&r) == 1, "read by a worker");
	pid_t child = MUST(fork());
	if (child == 0) {
		CHECK(read(p[0], &c, 1) == 1, "read");
		work(&r, 7);
		_exit(write(q[1], "y", 1) == 1 ? 0 : 1);
	}
	ready();
	wait_go();
	MUST(write(p[1], "x", 1));
	CHECK(read(q[0], &c, 1) == 1, "the child says nothing");
	r.head += 7, r.tail += 7, r.next += 7, r.due += 7;
	work(&r, 20);
	int st;
	CHECK(waitpid(child, &st, 0) == child && st == 0, "child %#x", st);
}

static struct ring theirs;
static int step;

static void *other(void *arg)
{
	make(&theirs, 16, (unsigned)(uintptr_t)arg);
	work(&theirs, 50);
	leave(&theirs);
	__atomic_store_n(&step, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&step, __ATOMIC_SEQ_CST) != 2)
		nap(5);
	carry_on(&theirs);
	return NULL;
}

// thread has a ring that only another thread may use, and a thread that waits for completions.
static void thread(unsigned flags)
{
	pthread_t t;
	CHECK(pthread_create(&t, NULL, other, (void *)(uintptr_t)flags) == 0, "pthread_create");
	while (__atomic_load_n(&step, __ATOMIC_SEQ_CST) != 1)
		nap(5);
	ready();
	wait_go();
	__atomic_store_n(&step, 2, __ATOMIC_SEQ_CST);
	CHECK(pthread_join(t, NULL) == 0, "pthread_join");
}

static void *waiter(void *arg)
{
	struct ring *r = arg;
	long n = syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	CHECK(n == 0, "the wait gave %ld", n);
	CHECK(reap(r) == 0, "what was waited for");
	return NULL;
}

// waiting has a thread that waits for completions of an empty ring.
static void waiting(void)
{
	struct ring r;
	make(&r, 8, 0);
	work(&r, 9);
	pthread_t t;
	CHECK(pthread_create(&t, NULL, waiter, &r) == 0, "pthread_create");
	nap(50);
	ready();
	wait_go();
	nap(20);
	add(&r, IORING_OP_NOP, -1, NULL, 0);
	submit(&r, 1, 0);
	CHECK(pthread_join(t, NULL) == 0, "pthread_join");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	const char *what = argc > 4 ? argv[4] : "plain";
	if (!strcmp(what, "plain"))
		basic(0);
	else if (!strcmp(what, "big"))
		basic(IORING_SETUP_SQE128 | IORING_SETUP_CQE32);
	else if (!strcmp(what, "noarray"))
		basic(IORING_SETUP_NO_SQARRAY);
	else if (!strcmp(what, "single"))
		basic(IORING_SETUP_SINGLE_ISSUER);
	else if (!strcmp(what, "defer"))
		basic(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
	else if (!strcmp(what, "coop"))
		basic(IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
	else if (!strcmp(what, "sqpoll"))
		basic(IORING_SETUP_SQPOLL);
	else if (!strcmp(what, "iopoll"))
		basic(IORING_SETUP_IOPOLL);
	else if (!strcmp(what, "registered"))
		registered();
	else if (!strcmp(what, "shared"))
		shared();
	else if (!strcmp(what, "thread"))
		thread(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
	else if (!strcmp(what, "waiting"))
		waiting();
	else
		fail("no such test: %s", what);
	pass();
}
