// A program that holds one thing that no checkpoint keeps yet, named by the argument. It must
// live on as if nothing had been asked.
#include "prog.h"
#include <linux/aio_abi.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/fanotify.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ptrace.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

static char waits_for_ever; // where a read that never ends puts what it has read

static int lockfile(void) { return MUST(open("lock", O_RDWR | O_CREAT | O_TRUNC, 0644)); }

static pid_t child, orphan;
static volatile int made;

static int nap_forever(void *arg)
{
	(void)arg;
	for (;;)
		nap(10);
}

// own_files is a thread with a descriptor table of its own, and what is not kept then.
static void *own_files(void *what)
{
	MUST(unshare(CLONE_FILES));
	if (strcmp(what, "threadchild") == 0) {
		struct clone_args a = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
		if ((child = MUST(syscall(SYS_clone3, &a, sizeof a))) == 0)
			nap_forever(NULL);
	} else if (strcmp(what, "threadring") == 0) {
		struct io_uring_params p;
		memset(&p, 0, sizeof p);
		MUST(syscall(SYS_io_uring_setup, 4, &p));
	} else
		MUST(fcntl(lockfile(), F_SETLEASE, F_WRLCK));
	made = 1;
	nap_forever(NULL);
	return NULL;
}

// adopted_sharer makes a process that shares our descriptor table, is our child because its parent ended, and in a session
// where we never were.
static void adopted_sharer(void)
{
	struct clone_args a = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
	pid_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t between = MUST(syscall(SYS_clone3, &a, sizeof a));
	if (between == 0) {
		MUST(setsid());
		pid_t sharer = MUST(syscall(SYS_clone3, &a, sizeof a));
		if (sharer == 0)
			nap_forever(NULL);
		*shared = sharer;
		_exit(0);
	}
	MUST(waitpid(between, NULL, 0));
	child = *shared;
	MUST(munmap(shared, 4096));
}

static void notified(union sigval v)
{
	(void)v;
}

static void make(const char *what)
{
	if (strcmp(what, "socket") == 0)
		MUST(socket(AF_NETLINK, SOCK_RAW, 12));
	else if (strcmp(what, "unixpeer") == 0) {
		// The other end is held by a process that is not in the tree.
		int s[2];
		MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
		pid_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		pid_t c = MUST(fork());
		if (c == 0) {
			pid_t grandchild = MUST(fork());
			if (grandchild == 0) {
				close(s[0]);
				for (;;)
					nap(10);
			}
			*shared = grandchild;
			_exit(0);
		}
		MUST(waitpid(c, NULL, 0));
		orphan = *shared;
		MUST(munmap(shared, 4096));
		close(s[1]);
	} else if (strncmp(what, "tcp", 3) == 0) {
		struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		socklen_t len = sizeof a;
		int s = MUST(socket(AF_INET, SOCK_STREAM, 0)), c = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
		MUST(bind(s, (void *)&a, sizeof a));
		MUST(getsockname(s, (void *)&a, &len));
		if (strcmp(what, "tcpdeferred") == 0)
			MUST(setsockopt(s, IPPROTO_TCP, TCP_DEFER_ACCEPT, &(int){30}, sizeof(int)));
		if (strcmp(what, "tcperror") != 0)
			MUST(listen(s, 0));
		CHECK(connect(c, (void *)&a, sizeof a) == 0 || errno == EINPROGRESS, "connect");
		struct pollfd p = {c, POLLOUT, 0};
		MUST(poll(&p, 1, 5000));
		if (strcmp(what, "tcpurgent") == 0) {
			int in = MUST(accept(s, NULL, NULL));
			MUST(send(in, "!", 1, MSG_OOB));
		} else if (strcmp(what, "tcpconnecting") == 0) {
			// The queue has room for one; the next is never answered.
			c = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
			CHECK(connect(c, (void *)&a, sizeof a) == -1 && errno == EINPROGRESS, "connect");
		} else if (strcmp(what, "tcpwaiting") == 0)
			MUST(send(c, "!", 1, MSG_OOB));
		else if (strcmp(what, "tcpleft") == 0)
			MUST(close(c));
	} else if (strcmp(what, "unixwaiting") == 0) {
		// A connection that was not accepted, with an out-of-band byte.
		struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "sock"};
		int s = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(bind(s, (void *)&a, sizeof a));
		MUST(listen(s, 1));
		MUST(connect(c, (void *)&a, sizeof a));
		MUST(send(c, "x", 1, MSG_OOB));
	} else if (strcmp(what, "unixwaitingfile") == 0) {
		// A connection that was not accepted, with a file under way.
		struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "sock"};
		int s = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(bind(s, (void *)&a, sizeof a));
		MUST(listen(s, 1));
		MUST(connect(c, (void *)&a, sizeof a));
		char control[CMSG_SPACE(sizeof(int))];
		struct msghdr m = {.msg_iov = &(struct iovec){"x", 1}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
		*CMSG_FIRSTHDR(&m) = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &c, sizeof c);
		MUST(sendmsg(c, &m, 0));
	} else if (strcmp(what, "unixepoll") == 0) {
		// A file under way in a message that only a process that has it could give back.
		int s[2], ep = MUST(epoll_create1(0));
		MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
		char control[CMSG_SPACE(sizeof(int))];
		struct msghdr m = {.msg_iov = &(struct iovec){"x", 1}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
		*CMSG_FIRSTHDR(&m) = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &ep, sizeof ep);
		MUST(sendmsg(s[0], &m, 0));
		close(ep);
	} else if (strcmp(what, "clonevm") == 0) {
		// Two processes with one memory. The child only naps, by a system call of its own.
		static char stack[65536] __attribute__((aligned(16)));
		child = MUST(clone(nap_forever, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL));
	} else if (strncmp(what, "thread", 6) == 0) {
		pthread_t t;
		MUST(-pthread_create(&t, NULL, own_files, (void *)what));
		while (!made)
			nap(5);
	} else if (strcmp(what, "adoptedsharer") == 0) {
		adopted_sharer();
	} else if (strcmp(what, "inotify") == 0) {
		// An event that nobody reads.
		int in = MUST(inotify_init1(0));
		MUST(mkdir("watched", 0700));
		MUST(inotify_add_watch(in, "watched", IN_CREATE));
		MUST(mkdir("watched/x", 0700));
	} else if (strcmp(what, "cwdxattr") == 0) {
		MUST(mkdir("d", 0700));
		MUST(syscall(SYS_setxattr, "d", "trusted.key", "v", 1, 0));
		MUST(chdir("d"));
		MUST(rmdir("../d"));
	} else if (strncmp(what, "aio", 3) == 0) {
		aio_context_t ctx = 0;
		MUST(syscall(SYS_io_setup, 5, &ctx));
		if (strcmp(what, "aiopoll") == 0) {
			int end[2];
			MUST(pipe(end));
			struct iocb cb = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = end[0], .aio_buf = POLLIN}, *one = &cb;
			MUST(syscall(SYS_io_submit, ctx, 1L, &one));
		} else {
			ctx = 0;
			MUST(syscall(SYS_io_setup, 200, &ctx));
			MUST(munmap((char *)ctx + (strcmp(what, "aiopart") == 0 ? 4096 : 0), 4096));
		}
	} else if (strcmp(what, "io_uring") == 0) {
		struct io_uring_params p;
		memset(&p, 0, sizeof p);
		int ring = MUST(syscall(SYS_io_uring_setup, 4, &p)), end[2];
		MUST(pipe(end));
		char *mem = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING));
		struct io_uring_sqe *sqe = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES));
		sqe->opcode = IORING_OP_READ; // of a pipe into which nobody writes
		sqe->fd = end[0];
		sqe->addr = (unsigned long)&waits_for_ever;
		sqe->len = 1;
		*(unsigned *)(mem + p.sq_off.tail) = 1;
		MUST(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0));
	} else if (strncmp(what, "uring", 5) == 0) {
		struct io_uring_params p;
		memset(&p, 0, sizeof p);
		if (strcmp(what, "uringrestricted") == 0 || strcmp(what, "uringwillrestrict") == 0)
			p.flags = IORING_SETUP_R_DISABLED;
		else if (strcmp(what, "uringnommap") == 0) {
			// user_addr is the last member of both, which older headers have no name for
			unsigned long at = (unsigned long)MUST(mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), next = at + 4096;
			p.flags = 1U << 14; // IORING_SETUP_NO_MMAP
			memcpy((char *)(&p.cq_off + 1) - sizeof at, &at, sizeof at);
			memcpy((char *)(&p.sq_off + 1) - sizeof next, &next, sizeof next);
		}
		int ring = MUST(syscall(SYS_io_uring_setup, 4, &p));
		if (strcmp(what, "uringworkers") == 0) {
			unsigned most[2] = {3, 3};
			MUST(syscall(SYS_io_uring_register, ring, 19 /* IORING_REGISTER_IOWQ_MAX_WORKERS */, most, 2));
		} else if (strcmp(what, "uringwillrestrict") == 0) {
			struct io_uring_restriction r = {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_NOP};
			MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_RESTRICTIONS, &r, 1));
		} else if (strcmp(what, "uringregion") == 0) {
			struct { unsigned long addr, size; unsigned flags, id; unsigned long off, resv[4]; } desc = {0, 4096, 1 /* IORING_MEM_REGION_TYPE_USER */, 0, 0, {0}};
			struct { unsigned long desc, flags, resv[2]; } reg = {(unsigned long)&desc, 0, {0}};
			desc.addr = (unsigned long)MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
			MUST(syscall(SYS_io_uring_register, ring, 34 /* IORING_REGISTER_MEM_REGION */, &reg, 1));
		} else if (strcmp(what, "uringnapi") == 0) {
			struct { unsigned timeout; unsigned char prefer, opcode, pad[2]; unsigned param, resv; } napi = {10, 0, 0, {0}, 0, 0};
			MUST(syscall(SYS_io_uring_register, ring, 27 /* IORING_REGISTER_NAPI */, &napi, 1));
		} else if (strcmp(what, "uringnommap") == 0)
			;
		else if (strcmp(what, "uringflags") == 0)
			MUST(fcntl(ring, F_SETFL, O_APPEND));
		else if (strcmp(what, "uringpersonality") == 0)
			MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_PERSONALITY, NULL, 0));
		else if (strcmp(what, "uringrestricted") == 0) {
			struct io_uring_restriction r = {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_NOP};
			MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_RESTRICTIONS, &r, 1));
			MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0));
		} else if (strcmp(what, "uringregistered") == 0) {
			struct { unsigned offset, resv; unsigned long data; } up = {-1U, 0, ring};
			MUST(syscall(SYS_io_uring_register, ring, 20 /* IORING_REGISTER_RING_FDS */, &up, 1));
		} else if (strcmp(what, "uringbuffers") == 0) {
			struct { unsigned long addr; unsigned entries; unsigned short bgid, flags; unsigned long resv[3]; } reg = {0, 4, 1, 0, {0}};
			reg.addr = (unsigned long)MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
			MUST(syscall(SYS_io_uring_register, ring, 22 /* IORING_REGISTER_PBUF_RING */, &reg, 1));
		} else { // uringclosed: mapped and closed
			MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING));
			MUST(close(ring));
		}
	} else if (strcmp(what, "pidfd") == 0)
		MUST(syscall(SYS_pidfd_open, getppid(), 0));
	else if (strcmp(what, "procfile") == 0) {
		char path[64];
		snprintf(path, sizeof path, "/proc/%d/stat", getppid());
		MUST(open(path, O_RDONLY));
	} else if (strncmp(what, "fanotify", 8) == 0) {
		int fd = MUST(fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK, 0));
		MUST(mkdir("watched", 0700));
		if (strcmp(what, "fanotify") == 0)
			MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN_PERM | FAN_EVENT_ON_CHILD, AT_FDCWD, "watched"));
		else {
			MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD, "watched"));
			int x = MUST(open("watched/x", O_CREAT | O_WRONLY, 0600));
			MUST(write(x, "x", 1));
			MUST(close(x));
		}
	} else if (strcmp(what, "userfaultfd") == 0)
		MUST(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY));
	else if (strcmp(what, "perf") == 0) {
		struct perf_event_attr a = {.type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_CPU_CLOCK, .exclude_kernel = 1};
		MUST(syscall(SYS_perf_event_open, &a, 0, -1, -1, 0));
	} else if (strcmp(what, "bpf") == 0) {
		union bpf_attr a;
		memset(&a, 0, sizeof a);
		a.map_type = BPF_MAP_TYPE_ARRAY;
		a.key_size = a.value_size = 4;
		a.max_entries = 1;
		MUST(syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a));
	} else if (strcmp(what, "dnotify") == 0) {
		signal(SIGIO, SIG_IGN);
		MUST(fcntl(MUST(open(".", O_RDONLY | O_DIRECTORY)), F_NOTIFY, DN_DELETE | DN_MULTISHOT));
	} else if (strcmp(what, "mqnotify") == 0) {
		char name[64];
		snprintf(name, sizeof name, "/ckptfs-refuse-%d", getpid());
		mqd_t q = MUST(mq_open(name, O_CREAT | O_RDWR, 0600, NULL));
		MUST(mq_unlink(name));
		struct sigevent ev = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = notified};
		MUST(mq_notify(q, &ev));
	} else if (strcmp(what, "numapart") == 0) {
		// A policy of a part of shared memory, made through another mapping.
		int m = MUST(memfd_create("numa", 0));
		MUST(ftruncate(m, 8 * 4096));
		void *whole = mmap(NULL, 8 * 4096, PROT_READ, MAP_SHARED, m, 0), *part = mmap(NULL, 4096, PROT_READ, MAP_SHARED, m, 0);
		CHECK(whole != MAP_FAILED && part != MAP_FAILED, "mmap");
		MUST(syscall(SYS_mbind, part, 4096, 2, &(unsigned long){1}, 64, 0));
	} else if (strcmp(what, "brokenlease") == 0) {
		signal(SIGIO, SIG_IGN);
		MUST(fcntl(lockfile(), F_SETLEASE, F_WRLCK));
		CHECK(open("lock", O_RDONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "open of a leased file");
	} else if (strcmp(what, "gonelease") == 0) {
		MUST(fcntl(lockfile(), F_SETLEASE, F_WRLCK));
		MUST(unlink("lock"));
	} else if (strcmp(what, "mappedlease") == 0) {
		int fd = lockfile();
		MUST(ftruncate(fd, 4096));
		CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
		MUST(fcntl(fd, F_SETLEASE, F_WRLCK));
	} else if (strcmp(what, "hiddenlink") == 0) {
		// A mapped file that has a name, but none that can be found.
		int fd = lockfile();
		MUST(ftruncate(fd, 4096));
		CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
		close(fd);
		MUST(mkdir("elsewhere", 0700));
		MUST(link("lock", "elsewhere/lock"));
		MUST(unlink("lock"));
	} else if (strcmp(what, "gonewithothers") == 0) {
		// A deleted file that somebody outside the tree maps, too.
		int fd = lockfile();
		MUST(ftruncate(fd, 4096));
		int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(shared != MAP_FAILED, "mmap");
		close(fd);
		MUST(unlink("lock"));
		pid_t between = MUST(fork());
		if (between == 0) {
			if (MUST(fork()) == 0) {
				*shared = getpid();
				nap_forever(NULL);
			}
			_exit(0);
		}
		MUST(waitpid(between, NULL, 0));
		while (*(volatile int *)shared == 0)
			nap(10);
		orphan = *shared;
	} else if (strcmp(what, "traced") == 0) {
		child = MUST(fork());
		if (child == 0)
			for (;;)
				nap(10);
		MUST(ptrace(PTRACE_SEIZE, child, 0, 0));
	} else if (strcmp(what, "vfork") == 0) {
		// Another thread sits in vfork until its child ends.
	} else
		fail("no such thing: %s", what);
}

static void *in_vfork(void *arg)
{
	(void)arg;
	pid_t p = vfork();
	if (p == 0) {
		while (!gone_ahead())
			nap(10);
		_exit(3);
	}
	int st;
	CHECK(waitpid(p, &st, 0) == p && WEXITSTATUS(st) == 3, "vfork child: %#x", st);
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	const char *what = argc > 4 ? argv[4] : "socket";
	make(what);
	pthread_t t;
	int vf = strcmp(what, "vfork") == 0;
	if (vf) {
		CHECK(pthread_create(&t, NULL, in_vfork, NULL) == 0, "thread");
		nap(50);
	}
	ready();
	wait_go();
	if (vf)
		pthread_join(t, NULL);
	if (orphan)
		MUST(kill(orphan, SIGKILL));
	if (child) {
		MUST(kill(child, SIGKILL));
		int st;
		CHECK(waitpid(child, &st, 0) == child && WIFSIGNALED(st), "child: %#x", st);
	}
	pass();
}
