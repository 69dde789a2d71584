// Files that lost the name by which they were opened, and have another: in the same folder or another one, with the old
// name free or taken by another file since. After a restore each is the very file that the other name leads to.
#include "prog.h"

struct one {
	const char *name, *other;
	int fd, flags, again;
	ino_t ino;
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	struct one all[] = {{"a", "a.kept", -1, O_RDWR}, {"b", "b.kept", -1, O_RDWR | O_APPEND}, {"c", "c.kept", -1, O_RDONLY}, {"d", "far/away/d", -1, O_RDWR}};
	MUST(mkdir("far", 0700));
	MUST(mkdir("far/away", 0700));
	for (size_t i = 0; i < 4; i++) {
		struct one *o = &all[i];
		int fd = MUST(open(o->name, O_RDWR | O_CREAT | O_TRUNC, 0640));
		MUST(write(fd, "before ", 7));
		close(fd);
		o->fd = MUST(open(o->name, o->flags));
		MUST(link(o->name, o->other));
		MUST(unlink(o->name));
		struct stat st;
		MUST(fstat(o->fd, &st));
		o->ino = st.st_ino;
		MUST(lseek(o->fd, 7, SEEK_SET));
	}
	close(MUST(open("b", O_RDWR | O_CREAT, 0600))); // another one by the old name
	ready();
	wait_go();

	for (size_t i = 0; i < 4; i++) {
		struct one *o = &all[i];
		struct stat st, by_name;
		char b[32] = "";
		MUST(fstat(o->fd, &st));
		MUST(stat(o->other, &by_name));
		CHECK(st.st_ino == o->ino && by_name.st_ino == o->ino && st.st_nlink == 1, "%s: inode %lu with %lu links, it was %lu", o->name, st.st_ino, st.st_nlink, o->ino);
		CHECK(lseek(o->fd, 0, SEEK_CUR) == 7, "%s: offset", o->name);
		CHECK(fcntl(o->fd, F_GETFL) == (o->flags | 0100000), "%s: flags %#o", o->name, fcntl(o->fd, F_GETFL));
		if (o->flags == O_RDONLY)
			continue;
		MUST(write(o->fd, "after", 5));
		int fd = MUST(open(o->other, O_RDONLY));
		CHECK(read(fd, b, sizeof b) == 12 && strcmp(b, "before after") == 0, "%s has %s", o->other, b);
		close(fd);
	}
	CHECK(access("a", F_OK) == -1 && access("c", F_OK) == -1, "an old name is there again");
	struct stat st;
	CHECK(stat("b", &st) == 0 && st.st_size == 0, "the new file of the old name was touched");
	pass();
}
