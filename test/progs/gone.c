// Files that are mapped and have lost their name: shared and private mappings, with and without
// a descriptor, replaced ones, sparse ones larger than any memory, ones whose folder is gone, and
// one that still has another name, as those of sem_open(3).
#include "prog.h"
#include <sys/mman.h>

#define PAGE 4096UL
#define BIG (3UL << 30)

static char *map(int fd, size_t len, int prot, int flags)
{
	char *p = mmap(NULL, len, prot, flags, fd, 0);
	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

static int make(const char *name, size_t len, uint64_t seed, mode_t mode)
{
	int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
	char *b = malloc(len);
	fill(b, len, seed);
	CHECK(write(fd, b, len) == (ssize_t)len, "write");
	free(b);
	MUST(fchmod(fd, mode));
	return fd;
}

static int pages(int fd)
{
	struct stat st;
	MUST(fstat(fd, &st));
	return (int)(st.st_blocks * 512 / PAGE);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int linked = argc > 4 && strcmp(argv[4], "linked") == 0;

	// Shared by two mappings, a child and two descriptors.
	int fd = make("shared", 8 * PAGE, 1, 0640);
	int ro = MUST(open("shared", O_RDONLY));
	char *a = map(fd, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *b = map(ro, 8 * PAGE, PROT_READ, MAP_SHARED);
	MUST(unlink("shared"));
	MUST(ftruncate(fd, 7 * PAGE + 123)); // the end is not that of a page
	a[PAGE] = 42;

	// Private, with pages of its own and pages of the file; no descriptor is left.
	int p = make("private", 8 * PAGE, 2, 0600);
	char *priv = map(p, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	fill(priv + 2 * PAGE, PAGE, 22);
	close(p);
	MUST(unlink("private"));

	// Read-only, and its name belongs to another file now.
	int r = make("replaced", 4 * PAGE, 3, 0444);
	char *rep = map(r, 4 * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	close(r);
	close(make("new", PAGE, 33, 0600));
	MUST(rename("new", "replaced"));

	// Mostly holes.
	int s = MUST(open("sparse", O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(ftruncate(s, BIG));
	MUST(pwrite(s, "far away", 8, BIG - 4096));
	char *big = map(s, BIG, PROT_READ, MAP_PRIVATE | MAP_NORESERVE);
	MUST(unlink("sparse"));

	// In a folder that is gone.
	MUST(mkdir("folder", 0700));
	int f = make("folder/inside", PAGE, 5, 0600);
	char *in = map(f, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	close(f);
	MUST(unlink("folder/inside"));
	MUST(rmdir("folder"));

	// Never had a name, and can get one.
	int t = MUST(open(".", O_TMPFILE | O_RDWR, 0600));
	MUST(ftruncate(t, PAGE));
	char *tm = map(t, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	strcpy(tm, "no name");
	MUST(lseek(t, 3, SEEK_SET));
	int tflags = MUST(fcntl(t, F_GETFL));

	// Under another name.
	char tmp[64], name[64];
	volatile int *sem = NULL;
	if (linked) {
		snprintf(tmp, sizeof tmp, "/dev/shm/ckptfs-test.%d", (int)getpid());
		snprintf(name, sizeof name, "/dev/shm/sem.ckptfs-test.%d", (int)getpid());
		int l = MUST(open(tmp, O_RDWR | O_CREAT | O_EXCL, 0600));
		MUST(ftruncate(l, 32));
		sem = (int *)map(l, 32, PROT_READ | PROT_WRITE, MAP_SHARED);
		close(l);
		MUST(link(tmp, name));
		MUST(unlink(tmp));
		*sem = 7;
	}
	struct stat was, now;
	MUST(fstat(fd, &was));
	int go[2];
	MUST(pipe(go));
	pid_t child = MUST(fork());
	if (child == 0) {
		char c;
		if (read(go[0], &c, 1) != 1 || a[PAGE] != 43)
			_exit(10);
		a[2 * PAGE] = 44;
		in[0] = 45;
		if (sem)
			*sem = 8;
		_exit(0);
	}
	ready();
	wait_go();

	MUST(fstat(fd, &now));
	CHECK(now.st_nlink == 0 && now.st_size == was.st_size && now.st_mode == was.st_mode && now.st_uid == was.st_uid &&
		      now.st_mtim.tv_sec == was.st_mtim.tv_sec && now.st_mtim.tv_nsec == was.st_mtim.tv_nsec,
	      "shared: links %d size %ld mode %o", (int)now.st_nlink, (long)now.st_size, now.st_mode);
	a[PAGE] = 43;
	MUST(write(go[1], "x", 1));
	int status;
	MUST(waitpid(child, &status, 0));
	CHECK(status == 0, "child: %#x (10: it does not share the file)", status);
	char c;
	CHECK(a[2 * PAGE] == 44 && b[2 * PAGE] == 44 && pread(ro, &c, 1, 2 * PAGE) == 1 && c == 44 && in[0] == 45, "what the child wrote");
	MUST(pwrite(fd, "y", 1, 3 * PAGE));
	CHECK(a[3 * PAGE] == 'y' && b[3 * PAGE] == 'y', "what went through the descriptor");
	uint64_t *words = (uint64_t *)a;
	for (size_t i = 4 * PAGE / 8; i < 7 * PAGE / 8; i++)
		CHECK(words[i] == mix(1 ^ i), "shared: word %zu", i);
	for (size_t i = 7 * PAGE + 123; i < 8 * PAGE; i++)
		CHECK(a[i] == 0, "shared: byte %zu behind the end", i);

	uint64_t *own = (uint64_t *)priv;
	for (size_t i = 0; i < 8 * PAGE / 8; i++)
		if (i / (PAGE / 8) != 2)
			CHECK(own[i] == mix(2 ^ i), "private: word %zu", i);
	check(priv + 2 * PAGE, PAGE, 22, "private: page of its own");
	check(rep, 4 * PAGE, 3, "replaced: the old content");
	char fresh[PAGE];
	int n = MUST(open("replaced", O_RDONLY));
	CHECK(read(n, fresh, PAGE) == PAGE, "read");
	check(fresh, PAGE, 33, "replaced: the new file");

	CHECK(memcmp(big + BIG - 4096, "far away", 8) == 0 && big[BIG / 2] == 0, "sparse");
	MUST(fstat(s, &now));
	CHECK((size_t)now.st_size == BIG && pages(s) < 64, "sparse: %ld bytes in %d pages", (long)now.st_size, pages(s));
	CHECK(fcntl(t, F_GETFL) == tflags && lseek(t, 0, SEEK_CUR) == 3, "O_TMPFILE: flags %o", fcntl(t, F_GETFL));
	char self[64];
	snprintf(self, sizeof self, "/proc/self/fd/%d", t);
	MUST(linkat(AT_FDCWD, self, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
	tm[0] = 'N';
	n = MUST(open("named", O_RDONLY));
	CHECK(read(n, fresh, 8) == 8 && strcmp(fresh, "No name") == 0, "O_TMPFILE: %.8s", fresh);

	if (sem) {
		int l = MUST(open(name, O_RDONLY));
		int v = 0;
		CHECK(*sem == 8 && read(l, &v, sizeof v) == sizeof v && v == 8, "linked: %d here, %d in the file", *sem, v);
		MUST(fstat(l, &now));
		CHECK(now.st_nlink == 1, "linked: %d links", (int)now.st_nlink);
		MUST(unlink(name));
	}
	pass();
}
