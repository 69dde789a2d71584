// tick is the program in the image beside it. It is linked without any library, so that the
// image depends on nothing but tick itself, the kernel's vdso and the CPU.
//
//	gcc -O1 -nostdlib -static -fno-stack-protector -fcf-protection=none -Wl,--build-id=none -o tick tick.c
//
// It lives in /tmp/ckptfs-image-v1, or v2 and so on. It keeps a pattern in memory and a counter, naps, and when
// the file "go" appears it writes "ok" or "fail" to the file "result" and exits.
typedef unsigned long u64;

static long call(long nr, long a, long b, long c)
{
	register long ret __asm__("rax");
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return ret;
}

enum { READ, WRITE, OPEN, CLOSE, ACCESS = 21, NANOSLEEP = 35, GETPID = 39, EXIT_GROUP = 231 };

static u64 pattern[4096];
static u64 turns;

static u64 mix(u64 x)
{
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15;
	return x ^ x >> 29;
}

__attribute__((force_align_arg_pointer, noreturn)) void _start(void)
{
	long pid = call(GETPID, 0, 0, 0);
	for (u64 i = 0; i < 4096; i++)
		pattern[i] = mix(i + pid);
	while (call(ACCESS, (long)"go", 0, 0) != 0) {
		long nap[2] = {0, 20000000};
		call(NANOSLEEP, (long)nap, 0, 0);
		turns++;
	}
	int good = pid == call(GETPID, 0, 0, 0) && turns > 0;
	for (u64 i = 0; i < 4096; i++)
		good &= pattern[i] == mix(i + pid);
	long fd = call(OPEN, (long)"result", 01101 /* O_WRONLY|O_CREAT|O_TRUNC */, 0644);
	call(WRITE, fd, (long)(good ? "ok\n" : "fail\n"), good ? 3 : 5);
	call(CLOSE, fd, 0, 0);
	call(EXIT_GROUP, !good, 0, 0);
	__builtin_unreachable();
}
