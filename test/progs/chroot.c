// A process with another root directory: its paths, its descriptors and its executable, which
// lies outside.
#include "prog.h"

static const char *base(const char *path)
{
	static char buf[3][256];
	static int n;
	snprintf(buf[n], sizeof buf[n], "/%s", strrchr(path, '/') + 1);
	return buf[n++];
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	char dir[4096];
	snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(ready_path, '/') - ready_path), ready_path);
	MUST(mkdir("sub", 0755));
	MUST(chroot(dir));
	MUST(chdir("/sub"));
	ready_path = base(ready_path);
	result_path = base(result_path);
	go_path = base(go_path);
	int fd = MUST(open("/sub/inside", O_RDWR | O_CREAT | O_TRUNC, 0644));
	MUST(write(fd, "inside", 6));
	ready();
	wait_go();

	char b[512];
	CHECK(getcwd(b, sizeof b) && strcmp(b, "/sub") == 0, "cwd %s", b);
	CHECK(access("/etc/passwd", F_OK) == -1 && errno == ENOENT, "the root is the old one");
	CHECK(pread(fd, b, sizeof b, 0) == 6 && memcmp(b, "inside", 6) == 0, "open file");
	CHECK(lseek(fd, 0, SEEK_CUR) == 6, "offset");
	CHECK(access("../..", F_OK) == 0 && access("inside", F_OK) == 0, "paths");
	pass();
}
