// Connections that wait to be accepted, with what was sent on them already: TCP and unix, also half closed, and
// more than the other end takes.
#include "prog.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <stddef.h>

enum { MANY = 3000000 };

static unsigned char byte(int conn, int i) { return (unsigned char)(conn * 31 + i * 7 + i / 251); }

static int port_of(int s)
{
	struct sockaddr_in6 a;
	socklen_t n = sizeof a;
	MUST(getsockname(s, (void *)&a, &n));
	return a.sin6_port; // where it is in struct sockaddr_in, too
}

static int tcp(int family, int defer, struct sockaddr_in6 *at, socklen_t *len)
{
	int l = MUST(socket(family, SOCK_STREAM, 0));
	memset(at, 0, sizeof *at);
	at->sin6_family = family;
	*len = sizeof *at;
	if (family == AF_INET6)
		at->sin6_addr = in6addr_loopback;
	else {
		((struct sockaddr_in *)at)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		*len = sizeof(struct sockaddr_in);
	}
	if (defer)
		MUST(setsockopt(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, &(int){5}, sizeof(int)));
	MUST(bind(l, (void *)at, *len));
	at->sin6_port = port_of(l);
	MUST(listen(l, 9));
	return l;
}

static int connected(int family, int type, void *at, socklen_t len)
{
	int c = MUST(socket(family, type, 0));
	MUST(connect(c, at, len));
	return c;
}

// give sends up to n bytes and returns how many were taken.
static int give(int c, int conn, int n)
{
	static unsigned char b[MANY];
	for (int i = 0; i < n; i++)
		b[i] = byte(conn, i);
	int sent = 0;
	while (sent < n) {
		int k = send(c, b + sent, n - sent, MSG_DONTWAIT);
		if (k < 0 && errno == EAGAIN)
			break;
		sent += MUST(k);
	}
	return sent;
}

static void reads(int a, int conn, int n)
{
	static unsigned char b[MANY];
	int got = 0;
	while (got < n) {
		int k = MUST(read(a, b, sizeof b));
		CHECK(k > 0, "connection %d ends after %d of %d bytes", conn, got, n);
		for (int i = 0; i < k; i++)
			CHECK(b[i] == byte(conn, got + i), "connection %d: byte %d", conn, got + i);
		got += k;
	}
	CHECK(got == n, "connection %d: %d bytes, not %d", conn, got, n);
}

// answers looks whether both ends of an accepted connection talk to each other.
static void answers(int a, int c, int ended)
{
	char b;
	MUST(send(a, "!", 1, 0));
	CHECK(read(c, &b, 1) == 1 && b == '!', "no answer");
	if (ended)
		CHECK(read(a, &b, 1) == 0, "it has not ended");
	else {
		CHECK(recv(a, &b, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "something else waits");
		MUST(send(c, "?", 1, 0));
		CHECK(read(a, &b, 1) == 1 && b == '?', "no question");
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	enum { V4, V6, DEFER, LISTENERS };
	enum { CONNS = 4 };
	int l[LISTENERS], c[LISTENERS][CONNS], sent[LISTENERS][CONNS], ports[LISTENERS][CONNS];
	for (int k = 0; k < LISTENERS; k++) {
		struct sockaddr_in6 at;
		socklen_t len;
		int family = k == V6 ? AF_INET6 : AF_INET;
		l[k] = tcp(family, k == DEFER, &at, &len);
		for (int i = 0; i < CONNS; i++) {
			c[k][i] = connected(family, SOCK_STREAM, &at, len);
			ports[k][i] = port_of(c[k][i]);
			int want[CONNS] = {k == DEFER, 100, MANY, 40000};
			sent[k][i] = give(c[k][i], 10 * k + i, want[i]);
			if (i == 3)
				MUST(shutdown(c[k][i], SHUT_WR));
		}
		CHECK(sent[k][2] > 100000, "only %d bytes were taken", sent[k][2]);
	}

	struct sockaddr_un named = {.sun_family = AF_UNIX, .sun_path = "stream"}, abstract = {.sun_family = AF_UNIX};
	socklen_t alen = offsetof(struct sockaddr_un, sun_path) + 1 + snprintf(abstract.sun_path + 1, 60, "waiting %d", getpid());
	int us = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), uq = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	MUST(bind(us, (void *)&named, sizeof named));
	MUST(bind(uq, (void *)&abstract, alen));
	MUST(listen(us, 9));
	MUST(listen(uq, 9));
	int s[3], q[2], usent[3];
	for (int i = 0; i < 3; i++) {
		s[i] = connected(AF_UNIX, SOCK_STREAM, &named, sizeof named);
		usent[i] = give(s[i], 50 + i, (int[]){0, MANY, 5000}[i]);
	}
	MUST(shutdown(s[2], SHUT_WR));
	for (int i = 0; i < 2; i++)
		q[i] = connected(AF_UNIX, SOCK_SEQPACKET, &abstract, alen);
	static char message[20000];
	memset(message, 'm', sizeof message);
	MUST(send(q[1], "one", 3, 0));
	MUST(send(q[1], "", 0, 0));
	MUST(send(q[1], message, sizeof message, 0));

	ready();
	wait_go();

	for (int k = 0; k < LISTENERS; k++)
		for (int i = 0; i < CONNS; i++) {
			struct sockaddr_in6 from;
			socklen_t n = sizeof from;
			int a = MUST(accept(l[k], (void *)&from, &n));
			CHECK(from.sin6_port == ports[k][i], "the order of listener %d is another", k);
			reads(a, 10 * k + i, sent[k][i]);
			answers(a, c[k][i], i == 3);
			close(a);
			CHECK(read(c[k][i], &(char){0}, 1) == 0, "the client does not see the end");
		}
	for (int i = 0; i < 3; i++) {
		int a = MUST(accept(us, NULL, NULL));
		struct ucred cred;
		socklen_t n = sizeof cred;
		MUST(getsockopt(a, SOL_SOCKET, SO_PEERCRED, &cred, &n));
		CHECK(cred.pid == getpid() && cred.uid == getuid(), "SO_PEERCRED tells of %d", cred.pid);
		reads(a, 50 + i, usent[i]);
		answers(a, s[i], i == 2);
	}
	for (int i = 0; i < 2; i++) {
		int a = MUST(accept(uq, NULL, NULL));
		static char b[sizeof message + 1];
		if (i == 1) {
			CHECK(recv(a, b, sizeof b, 0) == 3 && memcmp(b, "one", 3) == 0, "the first message");
			CHECK(recv(a, b, sizeof b, 0) == 0, "the empty message");
			CHECK(recv(a, b, sizeof b, 0) == sizeof message && memcmp(b, message, sizeof message) == 0, "the long message");
		}
		answers(a, q[i], 0);
	}
	pass();
}
