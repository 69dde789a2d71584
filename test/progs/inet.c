// Sockets of IPv4 and IPv6 with options, addresses and states. The argument says which: "listen",
// "datagram", "raw", "connected", "closing" or "ended".
#include "prog.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>

static struct sockaddr_in any4(const char *addr)
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	inet_pton(AF_INET, addr, &a.sin_addr);
	return a;
}

static int port_of(int s)
{
	struct sockaddr_storage a;
	socklen_t n = sizeof a;
	MUST(getsockname(s, (void *)&a, &n));
	return ntohs(((struct sockaddr_in *)&a)->sin_port);
}

static int get(int s, int level, int name)
{
	int v = -12345;
	socklen_t n = sizeof v;
	MUST(getsockopt(s, level, name, &v, &n));
	return v;
}

static void set(int s, int level, int name, int v) { MUST(setsockopt(s, level, name, &v, sizeof v)); }

static int bound(int type, int proto)
{
	int s = MUST(socket(AF_INET, type, proto));
	struct sockaddr_in a = any4("127.0.0.1");
	MUST(bind(s, (void *)&a, sizeof a));
	return s;
}

// listening sockets, of which one is in an epoll set
static void listeners(void)
{
	int fresh = MUST(socket(AF_INET, SOCK_STREAM, 0)), just_bound = bound(SOCK_STREAM, 0);
	int l = bound(SOCK_STREAM, 0), six = MUST(socket(AF_INET6, SOCK_STREAM, 0)), mp = socket(AF_INET, SOCK_STREAM, 262);
	set(l, SOL_SOCKET, SO_RCVBUF, 100000);
	set(l, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(l, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	set(l, IPPROTO_TCP, TCP_NODELAY, 1);
	set(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
	set(l, IPPROTO_TCP, TCP_FASTOPEN, 33);
	set(l, IPPROTO_TCP, TCP_MAXSEG, 900);
	set(l, IPPROTO_IP, IP_TOS, 0x10);
	MUST(setsockopt(l, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	struct timeval tv = {3, 500000};
	MUST(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
	struct linger li = {1, 9};
	MUST(setsockopt(l, SOL_SOCKET, SO_LINGER, &li, sizeof li));
	MUST(listen(l, 77));
	set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	set(six, SOL_SOCKET, SO_REUSEADDR, 1);
	struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	MUST(bind(six, (void *)&a6, sizeof a6));
	MUST(listen(six, 5));
	int group[2];
	group[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	set(group[0], SOL_SOCKET, SO_REUSEPORT, 1);
	struct sockaddr_in g = any4("127.0.0.1");
	MUST(bind(group[0], (void *)&g, sizeof g));
	g.sin_port = htons(port_of(group[0]));
	group[1] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	set(group[1], SOL_SOCKET, SO_REUSEPORT, 1);
	MUST(bind(group[1], (void *)&g, sizeof g));
	MUST(listen(group[0], 3));
	MUST(listen(group[1], 4));
	if (mp >= 0) {
		struct sockaddr_in m = any4("127.0.0.1");
		MUST(bind(mp, (void *)&m, sizeof m));
		MUST(listen(mp, 11));
	}
	int ep = MUST(epoll_create1(0));
	struct epoll_event ev = {.events = EPOLLIN, .data.u32 = 5};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev));
	int lport = port_of(l), bport = port_of(just_bound), gport = port_of(group[0]), mport = mp >= 0 ? port_of(mp) : 0, sixport = port_of(six);
	set(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
	set(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
	int defer = get(l, IPPROTO_TCP, TCP_DEFER_ACCEPT), rcvbuf = get(l, SOL_SOCKET, SO_RCVBUF);
	ready();
	wait_go();
	CHECK(port_of(fresh) == 0 && port_of(just_bound) == bport && port_of(l) == lport && port_of(six) == sixport, "ports");
	CHECK(port_of(group[0]) == gport && port_of(group[1]) == gport, "ports of the group");
	CHECK(get(l, SOL_SOCKET, SO_RCVBUF) == rcvbuf && get(l, SOL_SOCKET, SO_KEEPALIVE) == 1 && get(l, IPPROTO_TCP, TCP_KEEPIDLE) == 77, "options");
	CHECK(get(l, IPPROTO_TCP, TCP_NODELAY) == 1 && get(l, IPPROTO_TCP, TCP_FASTOPEN) == 33 && get(l, IPPROTO_TCP, TCP_MAXSEG) == 900, "TCP options");
	CHECK(get(l, IPPROTO_TCP, TCP_DEFER_ACCEPT) == defer && get(l, IPPROTO_IP, IP_TOS) == 0x10 && get(l, SOL_SOCKET, SO_ACCEPTCONN) == 1, "more options");
	CHECK(get(l, SOL_SOCKET, SO_REUSEADDR) == 0 && get(six, SOL_SOCKET, SO_REUSEADDR) == 1 && get(six, IPPROTO_IPV6, IPV6_V6ONLY) == 1, "SO_REUSEADDR");
	CHECK(get(just_bound, SOL_SOCKET, SO_REUSEADDR) == 0 && get(group[1], SOL_SOCKET, SO_REUSEPORT) == 1, "of bound ones");
	char cc[16] = "";
	socklen_t n = sizeof cc;
	MUST(getsockopt(l, IPPROTO_TCP, TCP_CONGESTION, cc, &n));
	CHECK(strcmp(cc, "reno") == 0, "congestion control %s", cc);
	n = sizeof tv;
	MUST(getsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &tv, &n));
	CHECK(tv.tv_sec == 3 && tv.tv_usec == 500000, "SO_RCVTIMEO %ld.%06ld", (long)tv.tv_sec, (long)tv.tv_usec);
	n = sizeof li;
	MUST(getsockopt(l, SOL_SOCKET, SO_LINGER, &li, &n));
	CHECK(li.l_onoff == 1 && li.l_linger == 9, "SO_LINGER %d %d", li.l_onoff, li.l_linger);
	struct tcp_info in;
	n = sizeof in;
	MUST(getsockopt(l, IPPROTO_TCP, TCP_INFO, &in, &n));
	CHECK(in.tcpi_state == TCP_LISTEN && in.tcpi_sacked == 77, "backlog %u", in.tcpi_sacked);
	// They work.
	int fds[] = {l, six, mp};
	for (int i = 0; i < 3; i++) {
		if (fds[i] < 0)
			continue;
		struct sockaddr_storage to;
		socklen_t len = sizeof to;
		MUST(getsockname(fds[i], (void *)&to, &len));
		int c = MUST(socket(to.ss_family, SOCK_STREAM, 0));
		MUST(connect(c, (void *)&to, len));
		CHECK(write(c, "hello", 5) == 5, "write");
		if (i == 0)
			CHECK(epoll_wait(ep, &ev, 1, 5000) == 1 && ev.data.u32 == 5, "epoll");
		char b[8];
		int s = MUST(accept(fds[i], NULL, NULL));
		CHECK(read(s, b, sizeof b) == 5 && memcmp(b, "hello", 5) == 0, "read");
		CHECK(i != 0 || get(s, IPPROTO_TCP, TCP_NODELAY) == 1, "an accepted socket inherits options");
		close(s);
		close(c);
	}
	if (mp >= 0)
		CHECK(port_of(mp) == mport && get(mp, SOL_SOCKET, SO_PROTOCOL) == 262, "MPTCP");
	MUST(listen(just_bound, 1));
}

static void datagrams(void)
{
	int a = bound(SOCK_DGRAM, 0), b = bound(SOCK_DGRAM, 0), fresh = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	struct sockaddr_in to = any4("127.0.0.1");
	to.sin_port = htons(port_of(b));
	MUST(connect(a, (void *)&to, sizeof to));
	set(a, SOL_SOCKET, SO_BROADCAST, 1);
	set(b, IPPROTO_IP, IP_PKTINFO, 1);
	set(b, IPPROTO_UDP, UDP_GRO, 1);
	set(b, SOL_SOCKET, SO_PEEK_OFF, 0);
	struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0xffff)};
	struct sock_fprog prog = {1, code};
	MUST(setsockopt(b, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog));
	set(b, SOL_SOCKET, SO_LOCK_FILTER, 1);
	int m = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	struct ip_mreqn mreq = {.imr_ifindex = 1};
	inet_pton(AF_INET, "239.1.2.3", &mreq.imr_multiaddr);
	MUST(setsockopt(m, IPPROTO_IP, IP_ADD_MEMBERSHIP, &mreq, sizeof mreq));
	struct sockaddr_in ma = any4("0.0.0.0");
	MUST(bind(m, (void *)&ma, sizeof ma));
	set(m, IPPROTO_IP, IP_MULTICAST_TTL, 7);
	int aport = port_of(a), bport = port_of(b), mport = port_of(m);
	ready();
	wait_go();
	CHECK(port_of(a) == aport && port_of(b) == bport && port_of(m) == mport && port_of(fresh) == 0, "ports");
	CHECK(get(a, SOL_SOCKET, SO_BROADCAST) == 1 && get(b, IPPROTO_IP, IP_PKTINFO) == 1 && get(b, SOL_SOCKET, SO_PEEK_OFF) == 0, "options");
	CHECK(get(b, IPPROTO_UDP, UDP_GRO) == 1 && get(b, SOL_SOCKET, SO_LOCK_FILTER) == 1 && get(m, IPPROTO_IP, IP_MULTICAST_TTL) == 7, "more options");
	socklen_t n = 0;
	MUST(getsockopt(b, SOL_SOCKET, SO_GET_FILTER, NULL, &n));
	CHECK(n == 1, "a filter of %u instructions", n);
	CHECK(setsockopt(m, IPPROTO_IP, IP_ADD_MEMBERSHIP, &mreq, sizeof mreq) == -1 && errno == EADDRINUSE, "it is not in the group any more");
	CHECK(write(a, "hello", 5) == 5, "write to a connected one");
	char buf[16];
	struct sockaddr_in from;
	n = sizeof from;
	CHECK(recvfrom(b, buf, sizeof buf, 0, (void *)&from, &n) == 5 && ntohs(from.sin_port) == aport, "recvfrom");
	n = sizeof from;
	MUST(getpeername(a, (void *)&from, &n));
	CHECK(ntohs(from.sin_port) == bport, "getpeername");
}

static void raw(void)
{
	int icmp = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)), ping = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	struct icmp_filter {
		unsigned data;
	} f = {~(1u << ICMP_ECHOREPLY)};
	MUST(setsockopt(icmp, SOL_RAW, 1, &f, sizeof f));
	struct sockaddr_in to = any4("127.0.0.1");
	MUST(connect(icmp, (void *)&to, sizeof to));
	ready();
	wait_go();
	socklen_t n = sizeof f;
	f.data = 0;
	MUST(getsockopt(icmp, SOL_RAW, 1, &f, &n));
	CHECK(f.data == ~(1u << ICMP_ECHOREPLY), "ICMP_FILTER %#x", f.data);
	CHECK(send(icmp, "12345678", 8, 0) == 8, "send of a raw socket without an address: %s", strerror(errno));
	if (ping >= 0)
		CHECK(get(ping, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_ICMP, "a ping socket");
}

static void connect_pair(int l, int s[2])
{
	s[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	struct sockaddr_in to = any4("127.0.0.1");
	to.sin_port = htons(port_of(l));
	MUST(connect(s[0], (void *)&to, sizeof to));
	s[1] = MUST(accept(l, NULL, NULL));
}

static void say(int s, const char *text) { CHECK(write(s, text, strlen(text)) == (ssize_t)strlen(text), "write %s: %s", text, strerror(errno)); }

static void hear(int s, const char *text)
{
	char b[64];
	size_t n = 0, want = strlen(text);
	while (n < want) {
		ssize_t k = read(s, b + n, want - n);
		CHECK(k > 0, "read of %s gives %zd %d", text, k, errno);
		n += k;
	}
	CHECK(memcmp(b, text, want) == 0, "read %.*s, want %s", (int)n, b, text);
}

static void end_of_file(int s)
{
	char b;
	ssize_t n = read(s, &b, 1);
	CHECK(n == 0, "read at the end gives %zd %d", n, errno);
}

// a connection that was reset, which has been reported
static void ended(void)
{
	int l = bound(SOCK_STREAM, 0), s[2];
	MUST(listen(l, 5));
	connect_pair(l, s);
	char b[8];
	struct linger li = {1, 0};
	MUST(setsockopt(s[1], SOL_SOCKET, SO_LINGER, &li, sizeof li));
	close(s[1]);
	struct pollfd p = {s[0], POLLRDHUP, 0};
	while (poll(&p, 1, 100) >= 0 && !(p.revents & POLLERR))
		;
	CHECK(read(s[0], b, sizeof b) == -1 && errno == ECONNRESET, "read of a reset connection");
	int port = port_of(s[0]), lport = port_of(l);
	ready();
	wait_go();
	signal(SIGPIPE, SIG_IGN);
	CHECK(port_of(l) == lport && port_of(s[0]) == port, "ports");
	end_of_file(s[0]);
	CHECK(write(s[0], "x", 1) == -1 && errno == EPIPE, "write");
	connect_pair(l, s); // new ones come in
}

static int filled(int s) // sends until nothing more fits
{
	char b[4096];
	int n = 0;
	for (;;) {
		for (size_t i = 0; i < sizeof b; i++)
			b[i] = (n + i) % 251;
		ssize_t k = send(s, b, sizeof b, MSG_DONTWAIT);
		if (k < 0)
			break;
		n += k;
	}
	return n;
}

static void drained(int s, int n)
{
	char b[4096];
	for (int at = 0; at < n;) {
		ssize_t k = read(s, b, sizeof b);
		CHECK(k > 0, "read of what filled it gives %zd %d after %d of %d", k, errno, at, n);
		for (ssize_t i = 0; i < k; i++)
			CHECK((unsigned char)b[i] == ((at + i) / 4096 * 4096 + (at + i) % 4096) % 251, "byte %zd", at + i);
		at += k;
	}
}

// connections between sockets of the program, in every state
static void connected(void)
{
	int l = bound(SOCK_STREAM, 0);
	MUST(listen(l, 20));
	enum { IDLE, DATA, HALF, HALF2, BOTHFIN, SHUTRD, FULL, GONE, GONEDATA, OTHER, COUNT };
	int s[COUNT][2];
	for (int i = 0; i < COUNT; i++)
		connect_pair(l, s[i]);
	set(s[IDLE][0], IPPROTO_TCP, TCP_NODELAY, 1);
	set(s[IDLE][0], SOL_SOCKET, SO_KEEPALIVE, 1);
	set(s[IDLE][1], IPPROTO_IP, IP_TOS, 0x10);
	say(s[DATA][0], "to the server");
	say(s[DATA][1], "to the client");
	say(s[HALF][0], "last words");
	MUST(shutdown(s[HALF][0], SHUT_WR));
	MUST(shutdown(s[HALF2][1], SHUT_WR));
	say(s[BOTHFIN][0], "unread");
	MUST(shutdown(s[SHUTRD][0], SHUT_RD));
	int n = filled(s[FULL][0]);
	close(s[GONE][0]);
	say(s[GONEDATA][0], "left behind");
	close(s[GONEDATA][0]);
	struct pollfd p = {s[GONEDATA][1], POLLRDHUP, 0};
	MUST(poll(&p, 1, 5000));
	p.fd = s[HALF][1];
	MUST(poll(&p, 1, 5000));
	int ep = MUST(epoll_create1(0));
	struct epoll_event ev = {.events = EPOLLIN, .data.u32 = 9};
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, s[OTHER][1], &ev));
	int port = port_of(s[IDLE][0]), lport = port_of(l);
	struct tcp_info was, is;
	socklen_t len = sizeof was;
	MUST(getsockopt(s[IDLE][0], IPPROTO_TCP, TCP_INFO, &was, &len));
	ready();
	wait_go();
	signal(SIGPIPE, SIG_IGN);
	CHECK(port_of(l) == lport && port_of(s[IDLE][0]) == port && port_of(s[IDLE][1]) == lport, "ports");
	len = sizeof is;
	MUST(getsockopt(s[IDLE][0], IPPROTO_TCP, TCP_INFO, &is, &len));
	CHECK(is.tcpi_state == TCP_ESTABLISHED && is.tcpi_options == was.tcpi_options && is.tcpi_snd_wscale == was.tcpi_snd_wscale && is.tcpi_rcv_wscale == was.tcpi_rcv_wscale,
	      "state %d, options %#x were %#x", is.tcpi_state, is.tcpi_options, was.tcpi_options);
	CHECK(get(s[IDLE][0], IPPROTO_TCP, TCP_NODELAY) == 1 && get(s[IDLE][0], SOL_SOCKET, SO_KEEPALIVE) == 1 && get(s[IDLE][1], IPPROTO_IP, IP_TOS) == 0x10, "options");
	say(s[IDLE][0], "ping");
	hear(s[IDLE][1], "ping");
	say(s[IDLE][1], "pong");
	hear(s[IDLE][0], "pong");
	hear(s[DATA][1], "to the server");
	hear(s[DATA][0], "to the client");
	say(s[DATA][0], "more");
	hear(s[DATA][1], "more");
	hear(s[HALF][1], "last words");
	end_of_file(s[HALF][1]);
	say(s[HALF][1], "answer");
	hear(s[HALF][0], "answer");
	CHECK(write(s[HALF][0], "x", 1) == -1 && errno == EPIPE, "write after shutdown");
	end_of_file(s[HALF2][0]);
	say(s[HALF2][0], "back");
	hear(s[HALF2][1], "back");
	MUST(shutdown(s[BOTHFIN][0], SHUT_WR));
	hear(s[BOTHFIN][1], "unread");
	end_of_file(s[BOTHFIN][1]);
	end_of_file(s[SHUTRD][0]);
	say(s[SHUTRD][0], "still");
	hear(s[SHUTRD][1], "still");
	drained(s[FULL][1], n);
	say(s[FULL][0], "after");
	hear(s[FULL][1], "after");
	end_of_file(s[GONE][1]);
	hear(s[GONEDATA][1], "left behind");
	end_of_file(s[GONEDATA][1]);
	say(s[OTHER][0], "event");
	CHECK(epoll_wait(ep, &ev, 1, 5000) == 1 && ev.data.u32 == 9, "epoll");
	connect_pair(l, s[0]);
}

static int state_of(int s)
{
	struct tcp_info in;
	socklen_t len = sizeof in;
	MUST(getsockopt(s, IPPROTO_TCP, TCP_INFO, &in, &len));
	return in.tcpi_state;
}

static void await_state(int s, int state, const char *when)
{
	for (int i = 0; i < 500 && state_of(s) != state; i++)
		usleep(10000);
	CHECK(state_of(s) == state, "%s: state %d, not %d", when, state_of(s), state);
}

// Connections that are being closed while the receiver does not read: the FIN waits behind data.
static void closing(void)
{
	int l = bound(SOCK_STREAM, 0);
	MUST(listen(l, 20));
	enum { WAIT1, CLOSING, LAST, COUNT };
	int s[COUNT][2], n[COUNT];
	for (int i = 0; i < COUNT; i++)
		connect_pair(l, s[i]);
	n[WAIT1] = filled(s[WAIT1][0]);
	MUST(shutdown(s[WAIT1][0], SHUT_WR));
	n[CLOSING] = filled(s[CLOSING][0]);
	MUST(shutdown(s[CLOSING][0], SHUT_WR));
	say(s[CLOSING][1], "bye");
	MUST(shutdown(s[CLOSING][1], SHUT_WR));
	MUST(shutdown(s[LAST][0], SHUT_WR));
	await_state(s[LAST][1], TCP_CLOSE_WAIT, "half closed");
	n[LAST] = filled(s[LAST][1]);
	MUST(shutdown(s[LAST][1], SHUT_WR));
	int want[COUNT][2] = {{TCP_FIN_WAIT1, TCP_ESTABLISHED}, {TCP_CLOSING, TCP_FIN_WAIT2}, {TCP_FIN_WAIT2, TCP_LAST_ACK}};
	for (int i = 0; i < COUNT; i++)
		for (int k = 0; k < 2; k++)
			await_state(s[i][k], want[i][k], "at first");
	ready();
	wait_go();
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < COUNT; i++)
		for (int k = 0; k < 2; k++)
			await_state(s[i][k], want[i][k], "afterwards");
	for (int i = 0; i < COUNT; i++) {
		int from = i == LAST, to = !from;
		CHECK(send(s[i][from], "x", 1, 0) == -1 && errno == EPIPE, "write after shutdown");
		drained(s[i][to], n[i]);
		end_of_file(s[i][to]);
	}
	hear(s[CLOSING][0], "bye");
	end_of_file(s[CLOSING][0]);
	end_of_file(s[LAST][1]);
	say(s[WAIT1][1], "answer");
	hear(s[WAIT1][0], "answer");
	await_state(s[WAIT1][0], TCP_FIN_WAIT2, "read");
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	const char *what = argc > 4 ? argv[4] : "listen";
	if (strcmp(what, "listen") == 0)
		listeners();
	else if (strcmp(what, "datagram") == 0)
		datagrams();
	else if (strcmp(what, "raw") == 0)
		raw();
	else if (strcmp(what, "ended") == 0)
		ended();
	else if (strcmp(what, "closing") == 0)
		closing();
	else
		connected();
	pass();
}
