// Mappings of files: private with some pages copied on write, private read-only at an offset,
// shared for writing, and a private mapping of which a part has lost its access rights.
#include "prog.h"

#define PAGE 4096UL

static int make(const char *name, int pages, uint64_t seed)
{
	int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0644));
	char b[PAGE];
	for (int i = 0; i < pages; i++) {
		fill(b, PAGE, seed + i);
		MUST(write(fd, b, PAGE));
	}
	return fd;
}

static char *map(int fd, int pages, int prot, int flags, int from)
{
	char *p = mmap(NULL, pages * PAGE, prot, flags, fd, from * PAGE);
	CHECK(p != MAP_FAILED, "mmap of a file");
	return p;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int a = make("private.dat", 8, 1000), b = make("offset.dat", 8, 2000), c = make("shared.dat", 4, 3000);
	int d = make("two names (deleted) \n.dat", 2, 4000);

	char *priv = map(a, 8, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	fill(priv + 2 * PAGE, PAGE, 7);
	fill(priv + 5 * PAGE, PAGE, 8);
	MUST(mprotect(priv + 5 * PAGE, PAGE, PROT_NONE));
	MUST(mprotect(priv, PAGE, PROT_READ));
	char *off = map(b, 3, PROT_READ, MAP_PRIVATE, 4);
	char *shared = map(c, 4, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	fill(shared + PAGE, PAGE, 9);
	char *rshared = map(c, 1, PROT_READ, MAP_SHARED, 1);
	char *odd = map(d, 2, PROT_READ, MAP_PRIVATE, 0);
	close(a); // the mapping holds it
	close(b);
	close(d);

	ready();
	wait_go();

	MUST(mprotect(priv + 5 * PAGE, PAGE, PROT_READ));
	for (int i = 0; i < 8; i++)
		check(priv + i * PAGE, PAGE, i == 2 ? 7 : i == 5 ? 8 : 1000 + i, "private mapping");
	for (int i = 0; i < 3; i++)
		check(off + i * PAGE, PAGE, 2004 + i, "mapping at an offset");
	check(shared, PAGE, 3000, "shared mapping");
	check(shared + PAGE, PAGE, 9, "shared mapping, written page");
	check(rshared, PAGE, 9, "second shared mapping");
	check(odd, PAGE, 4000, "mapping of a file with an odd name");

	// Private stays private, shared stays shared.
	char page[PAGE];
	a = MUST(open("private.dat", O_RDONLY));
	MUST(pread(a, page, PAGE, 2 * PAGE));
	check(page, PAGE, 1002, "the file under the private mapping");
	memset(shared + 2 * PAGE, 0x5a, PAGE);
	MUST(pread(c, page, PAGE, 2 * PAGE));
	CHECK(memcmp(page, shared + 2 * PAGE, PAGE) == 0, "shared mapping to file");
	memset(page, 0xa5, PAGE);
	MUST(pwrite(c, page, PAGE, 3 * PAGE));
	CHECK(memcmp(page, shared + 3 * PAGE, PAGE) == 0, "file to shared mapping");
	pass();
}
