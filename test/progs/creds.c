// Credentials of a program that is not root: all four user and group ids, groups,
// capabilities, securebits, no_new_privs, dumpable. The first argument chooses how much of a
// privilege is left: "user" (none), "caps" (a few capabilities), "root" (root without some).
#include "prog.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>

static const gid_t groups[] = {77, 1234, 5555, 60001};
#define CAP(n) (1ull << (n))

struct caps {
	uint64_t eff, prm, inh;
};

static void set_caps(struct caps c)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2] = {{c.eff, c.prm, c.inh}, {c.eff >> 32, c.prm >> 32, c.inh >> 32}};
	MUST(syscall(SYS_capset, &h, d));
}

static struct caps get_caps(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];
	MUST(syscall(SYS_capget, &h, d));
	return (struct caps){(uint64_t)d[1].effective << 32 | d[0].effective,
			     (uint64_t)d[1].permitted << 32 | d[0].permitted,
			     (uint64_t)d[1].inheritable << 32 | d[0].inheritable};
}

struct state {
	uid_t u[4];
	gid_t g[4];
	gid_t groups[64];
	int ngroups;
	struct caps caps;
	uint64_t bound, ambient;
	int securebits, nnp, dumpable, pdeathsig;
};

static struct state look(void)
{
	struct state s;
	memset(&s, 0, sizeof s);
	MUST(getresuid(&s.u[0], &s.u[1], &s.u[2]));
	MUST(getresgid(&s.g[0], &s.g[1], &s.g[2]));
	s.u[3] = setfsuid(-1);
	s.g[3] = setfsgid(-1);
	s.ngroups = MUST(getgroups(64, s.groups));
	s.caps = get_caps();
	for (int i = 0; i <= 63; i++) {
		if (prctl(PR_CAPBSET_READ, i, 0, 0, 0) == 1)
			s.bound |= CAP(i);
		if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0) == 1)
			s.ambient |= CAP(i);
	}
	s.securebits = prctl(PR_GET_SECUREBITS);
	s.nnp = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
	s.dumpable = prctl(PR_GET_DUMPABLE);
	prctl(PR_GET_PDEATHSIG, &s.pdeathsig);
	return s;
}

static void become(const char *how)
{
	int user = strcmp(how, "user") == 0, root = strcmp(how, "root") == 0;
	MUST(setgroups(4, groups));
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0));
	if (root) {
		MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0));
		struct caps c = get_caps();
		c.eff &= ~(CAP(CAP_SYS_BOOT) | CAP(CAP_NET_RAW));
		c.prm &= ~CAP(CAP_SYS_BOOT);
		set_caps(c);
		return;
	}
	if (!user)
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP));
	MUST(setresgid(2234, 2235, 2236));
	MUST(setresuid(1234, 1235, 1236));
	if (user) {
		setfsuid(1236);
		MUST(prctl(PR_SET_DUMPABLE, 1));
	} else {
		setfsgid(2236);
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP));
		uint64_t few = CAP(CAP_NET_BIND_SERVICE) | CAP(CAP_KILL) | CAP(CAP_CHOWN);
		set_caps((struct caps){CAP(CAP_KILL), few, CAP(CAP_KILL) | CAP(CAP_CHOWN)});
		MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
	}
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_PDEATHSIG, SIGURG));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	become(argc > 4 ? argv[4] : "user");
	int own = MUST(open("own", O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(write(own, "mine", 4));
	struct state before = look();
	ready();
	wait_go();

	struct state now = look();
	for (int i = 0; i < 4; i++) {
		CHECK(now.u[i] == before.u[i], "uid %d (real, effective, saved, fs): %u was %u", i, now.u[i], before.u[i]);
		CHECK(now.g[i] == before.g[i], "gid %d (real, effective, saved, fs): %u was %u", i, now.g[i], before.g[i]);
	}
	CHECK(now.ngroups == before.ngroups && memcmp(now.groups, before.groups, sizeof now.groups) == 0, "groups: %d of them",
	      now.ngroups);
	CHECK(now.caps.eff == before.caps.eff, "effective %#lx was %#lx", now.caps.eff, before.caps.eff);
	CHECK(now.caps.prm == before.caps.prm, "permitted %#lx was %#lx", now.caps.prm, before.caps.prm);
	CHECK(now.caps.inh == before.caps.inh, "inheritable %#lx was %#lx", now.caps.inh, before.caps.inh);
	CHECK(now.bound == before.bound, "bounding set %#lx was %#lx", now.bound, before.bound);
	CHECK(now.ambient == before.ambient, "ambient %#lx was %#lx", now.ambient, before.ambient);
	CHECK(now.securebits == before.securebits, "securebits %#x was %#x", now.securebits, before.securebits);
	CHECK(now.nnp == before.nnp, "no_new_privs %d", now.nnp);
	CHECK(now.dumpable == before.dumpable, "dumpable %d was %d", now.dumpable, before.dumpable);
	CHECK(now.pdeathsig == before.pdeathsig, "pdeathsig %d was %d", now.pdeathsig, before.pdeathsig);
	char b[4];
	CHECK(pread(own, b, 4, 0) == 4 && memcmp(b, "mine", 4) == 0, "own file");
	if (now.u[1] != 0)
		CHECK(open("/etc/shadow", O_RDONLY) == -1 && errno == EACCES, "/etc/shadow opens");
	pass();
}
