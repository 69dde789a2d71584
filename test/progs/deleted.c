// Open files that have no name any more: deleted ones, O_TMPFILE, one whose name now belongs to
// another file, one of huge size with little in it, one whose folders are gone, too, and
// deleted directories, open and as working directory of the process and a child.
#include "prog.h"

#define HUGE (1LL << 40)

static void empty_dir(int fd, const char *what)
{
	struct stat st;
	char b[512];
	MUST(fstat(fd, &st));
	CHECK(st.st_nlink == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 07777) == 0710, "%s: links %d mode %o", what, (int)st.st_nlink, st.st_mode);
	CHECK(syscall(SYS_getdents64, fd, b, sizeof b) <= 48 && openat(fd, "x", O_CREAT | O_RDWR, 0600) == -1 && errno == ENOENT, "%s is not a deleted one", what);
}

static void in_deleted(const char *want)
{
	char b[4096];
	ssize_t n = MUST(readlink("/proc/self/cwd", b, sizeof b - 1));
	b[n] = 0;
	CHECK(strcmp(b, want) == 0, "the working directory is %s, was %s", b, want);
	CHECK(getcwd(b, sizeof b) == NULL && errno == ENOENT, "getcwd finds %s", b);
	int fd = MUST(open(".", O_RDONLY | O_DIRECTORY));
	empty_dir(fd, "working directory");
	close(fd);
}

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
	int huge = MUST(open("huge", O_RDWR | O_CREAT | O_TRUNC, 0640));
	MUST(ftruncate(huge, HUGE));
	for (int i = 0; i < 8; i++)
		MUST(pwrite(huge, "block", 5, i * (HUGE / 8) + 12345 + i));
	MUST(unlink("huge"));
	MUST(mkdir("g", 0700));
	MUST(mkdir("g/h", 0700));
	int deep = MUST(open("g/h/deep", O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(write(deep, "deep", 4));
	MUST(unlink("g/h/deep"));
	MUST(rmdir("g/h"));
	MUST(rmdir("g"));
	umask(0);
	MUST(mkdir("d", 0710));
	MUST(mkdir("d/sub", 0710));
	int d = MUST(open("d", O_RDONLY | O_DIRECTORY)), sub = MUST(open("d/sub", O_PATH | O_DIRECTORY));
	MUST(chdir("d/sub"));
	MUST(rmdir("../sub"));
	MUST(unlinkat(d, "../d", AT_REMOVEDIR));
	char cwd[4096];
	ssize_t n = MUST(readlink("/proc/self/cwd", cwd, sizeof cwd - 1));
	cwd[n] = 0;
	in_deleted(cwd);
	pid_t child = MUST(fork());
	if (child == 0) {
		wait_go();
		in_deleted(cwd);
		_exit(0);
	}
	ready();
	wait_go();

	in_deleted(cwd);
	empty_dir(d, "directory");
	struct stat here, there;
	MUST(stat(".", &here));
	MUST(fstat(sub, &there));
	CHECK(here.st_ino == there.st_ino, "the working directory is another one than the open directory");
	MUST(stat("..", &here));
	MUST(fstat(d, &there));
	CHECK(here.st_ino == there.st_ino, "the directory above is another one");
	int status;
	MUST(waitpid(child, &status, 0));
	CHECK(status == 0, "child: %#x", status);
	MUST(fstat(huge, &here));
	CHECK(here.st_size == HUGE && here.st_nlink == 0 && here.st_blocks < 1000, "huge file: %lld bytes, %lld blocks", (long long)here.st_size, (long long)here.st_blocks);
	for (int i = 0; i < 8; i++)
		CHECK(pread(huge, b, 7, i * (HUGE / 8) + 12344 + i) == 7 && memcmp(b, "\0block\0", 7) == 0, "block %d", i);
	CHECK(pread(deep, b, 10, 0) == 4 && memcmp(b, "deep", 4) == 0, "the file whose folders are gone");

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
