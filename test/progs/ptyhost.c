// A terminal with a program in it that anybody may talk to by a unix socket, one client at a time:
// what tmux does, without a screen. What nobody has read waits for the next client.
//
//	SOCKET COMMAND [ARG…]
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char waiting[1 << 20];
static size_t len;

static void out(int client, const char *p, size_t n)
{
	if (client >= 0 && send(client, p, n, MSG_NOSIGNAL) == (ssize_t)n)
		return;
	if (n > sizeof waiting - len)
		n = sizeof waiting - len;
	memcpy(waiting + len, p, n);
	len += n;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	struct winsize ws = {.ws_row = 30, .ws_col = 100};
	int master;
	pid_t child = forkpty(&master, NULL, NULL, &ws);
	if (child == 0) {
		execvp(argv[2], argv + 2);
		_exit(127);
	}
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	strncpy(a.sun_path, argv[1], sizeof a.sun_path - 1);
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (child < 0 || s < 0 || bind(s, (void *)&a, sizeof a) != 0 || listen(s, 5) != 0)
		return 3;
	int client = -1;
	for (;;) {
		struct pollfd p[3] = {{master, POLLIN}, {client < 0 ? s : -1, POLLIN}, {client, POLLIN}};
		char b[4096];
		if (poll(p, 3, -1) < 0) {
			if (errno == EINTR)
				continue;
			return 4;
		}
		if (p[0].revents) {
			ssize_t n = read(master, b, sizeof b);
			if (n <= 0)
				break; // the program is gone
			out(client, b, n);
		}
		if (p[1].revents && (client = accept4(s, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
			size_t n = len;
			len = 0;
			out(client, waiting, n);
		}
		if (client >= 0 && p[2].revents) {
			ssize_t n = read(client, b, sizeof b);
			if (n <= 0) {
				close(client);
				client = -1;
			} else if (write(master, b, n) != n)
				return 5;
		}
	}
	int st;
	waitpid(child, &st, 0);
	return WEXITSTATUS(st);
}
