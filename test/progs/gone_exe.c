// A program whose own file is gone: deleted, replaced by another one as an upgrade does, or still
// there under another name. Its code is mapped from it, and it can be read and executed again.
#include "prog.h"
#include <limits.h>

static size_t slurp(const char *path, char **out)
{
	int fd = MUST(open(path, O_RDONLY));
	struct stat st;
	MUST(fstat(fd, &st));
	*out = malloc((size_t)st.st_size);
	CHECK(read(fd, *out, (size_t)st.st_size) == st.st_size, "read %s", path);
	close(fd);
	return (size_t)st.st_size;
}

static void copy(const char *from, const char *to)
{
	char *b;
	size_t n = slurp(from, &b);
	int fd = MUST(open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755));
	CHECK(write(fd, b, n) == (ssize_t)n, "write");
	close(fd);
	free(b);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "again") == 0)
		return 77;
	begin(argc, argv);
	const char *how = argc > 4 ? argv[4] : "deleted";
	if (argc < 6) { // not in the copy yet
		copy("/proc/self/exe", "copy");
		copy("/proc/self/exe", "same");
		execl("copy", argv[0], argv[1], argv[2], argv[3], how, "copied", NULL);
		fail("exec: %s", strerror(errno));
	}
	if (strcmp(how, "replaced") == 0) {
		put("new", "#!/bin/false\n");
		MUST(rename("new", "copy"));
	} else {
		if (strcmp(how, "linked") == 0)
			MUST(link("copy", "other"));
		MUST(unlink("copy"));
	}
	ready();
	wait_go();

	char link[PATH_MAX] = "";
	MUST(readlink("/proc/self/exe", link, sizeof link - 1));
	struct stat st;
	MUST(stat("/proc/self/exe", &st));
	CHECK((st.st_mode & 07777) == 0755, "mode %o", st.st_mode);
	if (strcmp(how, "linked") == 0) {
		struct stat other;
		MUST(stat("other", &other));
		CHECK(other.st_ino == st.st_ino && st.st_nlink == 1, "exe is inode %lu, its other name %lu", (unsigned long)st.st_ino, (unsigned long)other.st_ino);
	} else {
		CHECK(strstr(link, " (deleted)") && st.st_nlink == 0, "exe is %s with %d links", link, (int)st.st_nlink);
		CHECK(access("copy", F_OK) == (strcmp(how, "replaced") == 0 ? 0 : -1), "the name of the executable");
	}
	char *a, *b;
	size_t n = slurp("/proc/self/exe", &a);
	CHECK(slurp("same", &b) == n && memcmp(a, b, n) == 0, "the executable is not what it was");
	pid_t pid = MUST(fork());
	if (pid == 0) {
		execl("/proc/self/exe", argv[0], "again", NULL);
		_exit(1);
	}
	int status;
	MUST(waitpid(pid, &status, 0));
	CHECK(WEXITSTATUS(status) == 77, "the executable executed again: %#x", status);
	pass();
}
