// NUMA policies of threads and of mappings, with the one node that every machine has.
#include "prog.h"
#include <linux/mempolicy.h>
#include <pthread.h>

#define PAGE 4096UL

#ifndef MPOL_F_NUMA_BALANCING
#define MPOL_F_NUMA_BALANCING (1 << 13)
#endif

static int get(int *mode, unsigned long nodes[16], void *addr, int flags)
{
	*mode = -1;
	memset(nodes, 0, 128);
	return syscall(SYS_get_mempolicy, mode, nodes, 1025, addr, flags);
}

static void expect(void *addr, int flags, int mode, unsigned long node, const char *what)
{
	int is;
	unsigned long nodes[16];
	MUST(get(&is, nodes, addr, flags));
	CHECK(is == mode && nodes[0] == node, "%s: mode %#x of nodes %#lx, should be %#x of %#lx", what, is, nodes[0], mode, node);
}

static const struct {
	int mode;
	unsigned long nodes;
} policies[] = {
	{MPOL_PREFERRED, 1},
	{MPOL_LOCAL, 0},
	{MPOL_BIND, 1},
	{MPOL_INTERLEAVE, 1},
	{MPOL_BIND | MPOL_F_STATIC_NODES, 1},
	{MPOL_INTERLEAVE | MPOL_F_RELATIVE_NODES, 5},
	{MPOL_PREFERRED_MANY, 1},
	{MPOL_BIND | MPOL_F_NUMA_BALANCING, 1},
};
enum { N = sizeof policies / sizeof *policies };

static _Atomic int up, checked;

static void *thread(void *arg)
{
	long i = (long)arg;
	MUST(syscall(SYS_set_mempolicy, policies[i].mode, &policies[i].nodes, 64));
	up++;
	while (!gone_ahead())
		nap(5);
	expect(NULL, 0, policies[i].mode, policies[i].nodes, "thread");
	checked++;
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char *p[N], *shared[2];
	for (int i = 0; i < N; i++) {
		p[i] = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(p[i] != MAP_FAILED, "mmap");
		MUST(syscall(SYS_mbind, p[i] + PAGE, 4 * PAGE, policies[i].mode, &policies[i].nodes, 64, 0));
		fill(p[i], 6 * PAGE, i);
	}
	for (int i = 0; i < 2; i++) {
		shared[i] = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		CHECK(shared[i] != MAP_FAILED, "mmap");
		fill(shared[i], 6 * PAGE, 100 + i);
	}
	MUST(syscall(SYS_mbind, shared[0], 3 * PAGE, MPOL_INTERLEAVE, &(unsigned long){1}, 64, 0));
	pthread_t t[N];
	for (long i = 0; i < N; i++)
		CHECK(pthread_create(&t[i], NULL, thread, (void *)i) == 0, "pthread_create");
	while (up < N)
		nap(1);
	ready();
	wait_go();
	expect(NULL, 0, MPOL_DEFAULT, 0, "main thread");
	for (int i = 0; i < N; i++) {
		expect(p[i] + 5 * PAGE, MPOL_F_ADDR, MPOL_DEFAULT, 0, "memory beside");
		expect(p[i] + PAGE, MPOL_F_ADDR, policies[i].mode, policies[i].nodes, "memory");
		check(p[i], 6 * PAGE, i, "memory");
	}
	expect(shared[0] + 2 * PAGE, MPOL_F_ADDR, MPOL_INTERLEAVE, 1, "shared memory");
	expect(shared[0] + 3 * PAGE, MPOL_F_ADDR, MPOL_DEFAULT, 0, "shared memory beside");
	expect(shared[1], MPOL_F_ADDR, MPOL_DEFAULT, 0, "other shared memory");
	check(shared[0], 6 * PAGE, 100, "shared memory");
	for (int i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	CHECK(checked == N, "%d threads have looked", checked);
	pass();
}
