// A thread blocked in accept on a listening socket, which goes on after checkpoints and a restore.
#include "prog.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int sock;

static void *run(void *arg)
{
	(void)arg;
	int c = accept(sock, NULL, NULL);
	CHECK(c >= 0, "accept");
	char b;
	CHECK(read(c, &b, 1) == 1, "read");
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	sock = MUST(socket(AF_INET, SOCK_STREAM, 0));
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof a;
	MUST(bind(sock, (struct sockaddr *)&a, len));
	MUST(listen(sock, 5));
	MUST(getsockname(sock, (struct sockaddr *)&a, &len));
	pthread_t t;
	CHECK(pthread_create(&t, NULL, run, NULL) == 0, "thread");
	nap(50);
	ready();
	wait_go();
	int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(c, (struct sockaddr *)&a, len));
	MUST(write(c, "x", 1));
	pthread_join(t, NULL);
	pass();
}
