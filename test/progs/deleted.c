// Open files that have no name any more: deleted ones, O_TMPFILE, and one whose name now
// belongs to another file.
#include "prog.h"

int main(int argc, char **argv)
{
	begin(argc, argv);
	char b[8192];
	fill(b, sizeof b, 1);
	int gone = MUST(open("gone", O_RDWR | O_CREAT | O_TRUNC, 0640));
	MUST(write(gone, b, sizeof b));
	MUST(lseek(gone, 4096, SEEK_SET));
	int twin = MUST(dup(gone));
	MUST(unlink("gone"));
	int tmp = open(".", O_TMPFILE | O_RDWR, 0600);
	if (tmp >= 0)
		MUST(write(tmp, "no name", 7));
	int was = MUST(open("was", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(write(was, "old", 3));
	MUST(unlink("was"));
	int now = MUST(open("was", O_RDWR | O_CREAT | O_EXCL, 0644));
	MUST(write(now, "new one", 7));
	ready();
	wait_go();

	CHECK(lseek(gone, 0, SEEK_CUR) == 4096 && lseek(twin, 0, SEEK_CUR) == 4096, "offset");
	CHECK(pread(gone, b, sizeof b, 0) == sizeof b, "size");
	check(b, sizeof b, 1, "deleted file");
	MUST(lseek(twin, 0, SEEK_SET));
	CHECK(lseek(gone, 0, SEEK_CUR) == 0, "shared offset");
	struct stat st;
	MUST(fstat(gone, &st));
	CHECK(st.st_nlink == 0 && (st.st_mode & 0777) == 0640, "links %d mode %o", (int)st.st_nlink, st.st_mode);
	if (tmp >= 0)
		CHECK(pread(tmp, b, sizeof b, 0) == 7 && memcmp(b, "no name", 7) == 0, "O_TMPFILE");
	CHECK(pread(was, b, sizeof b, 0) == 3 && memcmp(b, "old", 3) == 0, "the deleted file has the new one's content");
	CHECK(pread(now, b, sizeof b, 0) == 7 && memcmp(b, "new one", 7) == 0, "the new file has the old one's content");
	pass();
}
