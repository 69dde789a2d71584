// epoll entries that outlive the number under which they were added: it was closed, or is another
// file's now, while the watched file is open under another number.
#include "prog.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int watch(int ep, int fd, unsigned events, unsigned data)
{
	struct epoll_event ev = {.events = events, .data.u32 = data};
	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

static void fires(int ep, int fd, unsigned data)
{
	struct epoll_event ev;
	CHECK(epoll_wait(ep, &ev, 1, 0) == 0, "it fires by itself: %u", ev.data.u32);
	CHECK(eventfd_write(fd, 1) == 0, "eventfd_write");
	CHECK(epoll_wait(ep, &ev, 1, 1000) == 1 && ev.data.u32 == data, "data %u, want %u", ev.data.u32, data);
	eventfd_t v;
	CHECK(eventfd_read(fd, &v) == 0, "eventfd_read");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
	int closed = MUST(eventfd(0, 0)), reused = MUST(eventfd(0, EFD_NONBLOCK)), plain = MUST(eventfd(0, 0));
	MUST(watch(ep, closed, EPOLLIN, 1));
	MUST(watch(ep, reused, EPOLLIN | EPOLLET, 2));
	MUST(watch(ep, plain, EPOLLIN, 3));
	int closed_now = MUST(fcntl(closed, F_DUPFD, 100)), reused_now = MUST(fcntl(reused, F_DUPFD, 200)), other = MUST(eventfd(7, 0));
	close(closed);
	MUST(dup3(other, reused, O_CLOEXEC));
	MUST(watch(ep, reused, EPOLLPRI, 4)); // the new file under that number is watched as well
	ready();
	wait_go();
	CHECK(fcntl(closed, F_GETFD) == -1 && errno == EBADF, "the closed number is open");
	CHECK(fcntl(reused, F_GETFD) == FD_CLOEXEC, "close-on-exec of the number that was used again");
	eventfd_t v;
	CHECK(eventfd_read(reused, &v) == 0 && v == 7, "the file under that number");
	fires(ep, closed_now, 1);
	fires(ep, reused_now, 2);
	fires(ep, plain, 3);
	CHECK(watch(ep, reused, EPOLLIN, 5) == -1 && errno == EEXIST, "the new file is not watched any more");
	pass();
}
