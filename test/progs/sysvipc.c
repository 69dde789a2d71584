// Semaphores and message queues of System V: values and who set them last, messages with their types in order,
// a child that waits in each.
#include "prog.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/wait.h>

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
};

struct message {
	long type;
	char text[5000];
};

static void op(int set, int num, int by) { MUST(semop(set, &(struct sembuf){num, by, 0}, 1)); }

static void send(int q, long type, size_t n)
{
	struct message m = {.type = type};
	fill(m.text, sizeof m.text, type);
	MUST(msgsnd(q, &m, n, 0));
}

static void receive(int q, long type, long want, size_t n)
{
	struct message m, is = {.type = want};
	fill(is.text, sizeof is.text, want);
	ssize_t got = msgrcv(q, &m, sizeof m.text, type, IPC_NOWAIT);
	CHECK(got == (ssize_t)n && m.type == want && memcmp(m.text, is.text, n) == 0, "message %ld: %zd bytes of type %ld", want, got, m.type);
}

static void expect_perm(struct ipc_perm *is, struct ipc_perm *was, const char *what)
{
	CHECK(is->__key == was->__key && is->mode == was->mode && is->uid == was->uid && is->gid == was->gid && is->cuid == was->cuid && is->cgid == was->cgid,
	      "%s: key %#x mode %#o %d:%d by %d:%d", what, is->__key, is->mode, is->uid, is->gid, is->cuid, is->cgid);
}

// unused has a set that it has not used, and is the only one of its user.
static void unused(void)
{
	ready();
	MUST(seteuid(54321));
	int set = MUST(semget(IPC_PRIVATE, 1, 0600));
	wait_go();
	MUST(seteuid(0));
	MUST(semctl(set, 0, IPC_RMID));
	pass();
}

// waits has a child that waits in a set which nobody has used yet.
static void waits(int set)
{
	pid_t child = MUST(fork());
	if (child == 0) {
		op(set, 0, -1);
		_exit(0);
	}
	while (semctl(set, 0, GETNCNT) != 1)
		nap(1);
	ready();
	wait_go();
	CHECK(semctl(set, 0, GETVAL) == 0 && waitpid(child, NULL, WNOHANG) == 0, "it does not wait any more");
	op(set, 0, 1);
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0, "child ended with %#x", status);
	MUST(semctl(set, 0, IPC_RMID));
	pass();
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc > 5)
		waits(atoi(argv[5]));
	if (argc > 4)
		unused();
	int base = 0x5d000000 | getpid() << 4;
	MUST(setegid(12));
	MUST(seteuid(33));
	int set = MUST(semget(base, 5, IPC_CREAT | IPC_EXCL | 0600));
	int queue = MUST(msgget(base, IPC_CREAT | IPC_EXCL | 0600));
	MUST(seteuid(0));
	MUST(setegid(0));
	int plain = MUST(semget(IPC_PRIVATE, 1, 0600)); // semop is never called
	int empty = MUST(msgget(IPC_PRIVATE, 0600));
	MUST(semctl(plain, 0, SETVAL, (union semun){.val = 32767}));
	struct semid_ds sem, sem_was;
	MUST(semctl(set, 0, IPC_STAT, (union semun){.buf = &sem}));
	sem.sem_perm.uid = 1000;
	sem.sem_perm.mode = 0640;
	MUST(semctl(set, 0, IPC_SET, (union semun){.buf = &sem}));
	struct msqid_ds msg, msg_was, empty_was;
	MUST(msgctl(queue, IPC_STAT, &msg));
	msg.msg_perm.gid = 1001;
	msg.msg_qbytes = 12000;
	MUST(msgctl(queue, IPC_SET, &msg));

	op(set, 0, 7);
	pid_t gone = MUST(fork());
	if (gone == 0) {
		op(set, 1, 3);
		send(empty, 1, 0);
		_exit(0);
	}
	CHECK(waitpid(gone, NULL, 0) == gone, "wait");
	pid_t child = MUST(fork());
	if (child == 0) {
		op(set, 2, 1);
		receive(empty, 0, 1, 0);
		while (semop(set, &(struct sembuf){3, -2, 0}, 1) != 0)
			CHECK(errno == EINTR, "child: semop");
		receive(queue, -8, 7, 10); // the lowest type first
		struct message m;
		ssize_t n;
		while ((n = msgrcv(empty, &m, sizeof m.text, 0, 0)) < 0)
			CHECK(errno == EINTR, "child: msgrcv");
		CHECK(n == 100 && m.type == 5, "child: received %zd bytes of type %ld", n, m.type);
		op(set, 3, 9);
		_exit(0);
	}
	send(queue, 9, 5000);
	send(queue, 8, 1);
	send(queue, 1L << 40, 0);
	send(queue, 7, 10);
	while (semctl(set, 3, GETNCNT) != 1 || semctl(set, 2, GETPID) != child)
		nap(1);
	MUST(semctl(set, 0, IPC_STAT, (union semun){.buf = &sem_was}));
	MUST(msgctl(queue, IPC_STAT, &msg_was));
	MUST(msgctl(empty, IPC_STAT, &empty_was));
	CHECK(empty_was.msg_lspid == gone && empty_was.msg_lrpid == child, "%d and %d used the empty queue", empty_was.msg_lspid, empty_was.msg_lrpid);
	ready();
	wait_go();

	CHECK(semget(base, 5, 0) == set && msgget(base, 0) == queue, "ids");
	MUST(semctl(set, 0, IPC_STAT, (union semun){.buf = &sem}));
	expect_perm(&sem.sem_perm, &sem_was.sem_perm, "semaphores");
	CHECK(sem.sem_nsems == 5 && sem.sem_otime != 0, "%lu semaphores, used at %ld", sem.sem_nsems, (long)sem.sem_otime);
	unsigned short values[5], want[5] = {7, 3, 1, 0, 0};
	MUST(semctl(set, 0, GETALL, (union semun){.array = values}));
	int pids[5] = {getpid(), gone, child, 0, 0};
	for (int i = 0; i < 5; i++) {
		CHECK(values[i] == want[i], "semaphore %d is %d", i, values[i]);
		CHECK(semctl(set, i, GETPID) == pids[i], "semaphore %d was changed by %d, not %d", i, semctl(set, i, GETPID), pids[i]);
	}
	CHECK(semctl(plain, 0, GETVAL) == 32767, "the plain one is %d", semctl(plain, 0, GETVAL));
	MUST(semctl(plain, 0, IPC_STAT, (union semun){.buf = &sem}));
	CHECK(sem.sem_otime == 0, "the plain one was used");
	MUST(msgctl(queue, IPC_STAT, &msg));
	expect_perm(&msg.msg_perm, &msg_was.msg_perm, "queue");
	CHECK(msg.msg_qnum == 4 && msg.msg_qbytes == 12000 && msg.__msg_cbytes == 5011, "%lu messages, %lu of %lu bytes", msg.msg_qnum, msg.__msg_cbytes, msg.msg_qbytes);
	CHECK(msg.msg_lspid == getpid() && msg.msg_lrpid == 0 && msg.msg_rtime == 0, "used by %d and %d", msg.msg_lspid, msg.msg_lrpid);
	MUST(msgctl(empty, IPC_STAT, &msg));
	CHECK(msg.msg_lspid == gone && msg.msg_lrpid == child, "the empty queue was used by %d and %d", msg.msg_lspid, msg.msg_lrpid);
	CHECK(msg.msg_qnum == 0, "the empty queue has messages");

	op(set, 3, 2);
	while (semctl(set, 3, GETPID) != child || msgctl(empty, IPC_STAT, &msg))
		nap(1);
	send(empty, 5, 100);
	op(set, 3, -9);
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0, "child ended with %#x", status);
	receive(queue, 0, 9, 5000);
	receive(queue, 0, 8, 1);
	receive(queue, 0, 1L << 40, 0);
	MUST(semctl(set, 0, IPC_RMID));
	MUST(semctl(plain, 0, IPC_RMID));
	MUST(msgctl(queue, IPC_RMID, NULL));
	MUST(msgctl(empty, IPC_RMID, NULL));
	pass();
}
