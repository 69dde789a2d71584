// Sockets of packet(7) on the loopback interface: bound to it and to none, with options, a filter, memberships and
// a fanout group. After a restore packets come to them as before, and no others.
#include "prog.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#define PORT 39871

static void set(int fd, int opt, int v) { MUST(setsockopt(fd, SOL_PACKET, opt, &v, sizeof v)); }

static int get(int fd, int opt)
{
	int v = -1;
	socklen_t n = sizeof v;
	MUST(getsockopt(fd, SOL_PACKET, opt, &v, &n));
	return v;
}

static void bound(int fd, int index, int proto)
{
	struct sockaddr_ll a = {0};
	socklen_t n = sizeof a;
	MUST(getsockname(fd, (void *)&a, &n));
	CHECK(a.sll_ifindex == index && a.sll_protocol == htons(proto), "bound to %d, protocol %#x, not %d and %#x", a.sll_ifindex, ntohs(a.sll_protocol), index, proto);
}

static void to_bind(int fd, int index, int proto)
{
	struct sockaddr_ll a = {.sll_family = AF_PACKET, .sll_ifindex = index, .sll_protocol = htons(proto)};
	MUST(bind(fd, (void *)&a, sizeof a));
}

static void send_to(int port, const char *text)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(sendto(fd, text, strlen(text), 0, (void *)&a, sizeof a));
	close(fd);
}

// seen counts the packets with a text that wait in a socket, and reads all.
static int seen(int fd, int skip, const char *text)
{
	char b[2048];
	int found = 0;
	for (;;) {
		ssize_t n = recv(fd, b, sizeof b, MSG_DONTWAIT);
		if (n == -1 && errno == EAGAIN)
			return found;
		MUST(n);
		size_t head = skip + sizeof(struct iphdr) + sizeof(struct udphdr);
		found += (size_t)n >= head + strlen(text) && memcmp(b + head, text, strlen(text)) == 0;
	}
}

static int file_has(const char *path, const char *text)
{
	char b[65536];
	int fd = MUST(open(path, O_RDONLY)), n = 0, r;
	while ((r = read(fd, b + n, sizeof b - 1 - n)) > 0)
		n += r;
	close(fd);
	b[n] = 0;
	return strstr(b, text) != NULL;
}

static int promiscuous(void)
{
	char b[32] = "";
	int fd = MUST(open("/sys/class/net/lo/flags", O_RDONLY));
	MUST(read(fd, b, sizeof b - 1));
	close(fd);
	return strtoul(b, NULL, 16) >> 8 & 1; // IFF_PROMISC
}

static int multicast(void) { return file_has("/proc/net/dev_mcast", "01005e010203"); }

int main(int argc, char **argv)
{
	begin(argc, argv);
	int lo = if_nametoindex("lo");
	CHECK(lo > 0, "no lo");

	// Payload without a link header, of UDP packets to PORT only, as a DHCP client has it.
	int filtered = MUST(socket(AF_PACKET, SOCK_DGRAM, 0));
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 9), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 4),
		BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0), BPF_STMT(BPF_LD | BPF_H | BPF_IND, 2),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PORT, 0, 1), BPF_STMT(BPF_RET | BPF_K, 65535), BPF_STMT(BPF_RET | BPF_K, 0)};
	struct sock_fprog prog = {sizeof code / sizeof *code, code};
	MUST(setsockopt(filtered, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog));
	set(filtered, PACKET_AUXDATA, 1);
	set(filtered, PACKET_ORIGDEV, 1);
	set(filtered, PACKET_IGNORE_OUTGOING, 1);
	int size = 300000;
	MUST(setsockopt(filtered, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
	socklen_t n = sizeof size;
	MUST(getsockopt(filtered, SOL_SOCKET, SO_RCVBUF, &size, &n));
	to_bind(filtered, lo, ETH_P_IP);

	// Whole frames of all interfaces, with memberships, one of them twice.
	int raw = MUST(socket(AF_PACKET, SOCK_RAW, 0));
	set(raw, PACKET_VERSION, TPACKET_V2);
	set(raw, PACKET_RESERVE, 16);
	set(raw, PACKET_QDISC_BYPASS, 1);
	struct packet_mreq promisc = {lo, PACKET_MR_PROMISC, 0, {0}}, multi = {lo, PACKET_MR_MULTICAST, 6, {1, 0, 0x5e, 1, 2, 3}};
	MUST(setsockopt(raw, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promisc, sizeof promisc));
	MUST(setsockopt(raw, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promisc, sizeof promisc));
	MUST(setsockopt(raw, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &multi, sizeof multi));
	to_bind(raw, 0, ETH_P_ARP); // of which lo has none

	// One that gets nothing.
	int deaf = MUST(socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0));

	// Two that share what comes.
	int group[2];
	for (int i = 0; i < 2; i++) {
		group[i] = MUST(socket(AF_PACKET, SOCK_DGRAM, 0));
		MUST(setsockopt(group[i], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog));
		to_bind(group[i], lo, ETH_P_IP);
		set(group[i], PACKET_FANOUT, 0x4711 | (PACKET_FANOUT_LB | PACKET_FANOUT_FLAG_ROLLOVER) << 16);
	}
	ready();
	wait_go();

	bound(filtered, lo, ETH_P_IP);
	bound(raw, 0, ETH_P_ARP);
	bound(deaf, 0, 0);
	CHECK(get(filtered, PACKET_AUXDATA) == 1 && get(filtered, PACKET_ORIGDEV) == 1 && get(filtered, PACKET_IGNORE_OUTGOING) == 1, "options");
	CHECK(get(raw, PACKET_VERSION) == TPACKET_V2 && get(raw, PACKET_RESERVE) == 16 && get(raw, PACKET_QDISC_BYPASS) == 1, "options of the raw one");
	CHECK(get(raw, PACKET_AUXDATA) == 0 && get(deaf, PACKET_VERSION) == TPACKET_V1, "options of others");
	CHECK(fcntl(deaf, F_GETFL) & O_NONBLOCK, "O_NONBLOCK");
	int now = 0;
	n = sizeof now;
	MUST(getsockopt(filtered, SOL_SOCKET, SO_RCVBUF, &now, &n));
	CHECK(now == size, "SO_RCVBUF %d, not %d", now, size);
	for (int i = 0; i < 2; i++)
		CHECK(get(group[i], PACKET_FANOUT) == (0x4711 | (PACKET_FANOUT_LB | PACKET_FANOUT_FLAG_ROLLOVER) << 16), "fanout %#x", get(group[i], PACKET_FANOUT));

	for (int i = 0; i < 20; i++) {
		send_to(PORT, "wanted");
		send_to(PORT + 1, "other");
	}
	nap(100);
	int got = seen(filtered, 0, "wanted");
	CHECK(got == 20, "%d packets of 20", got);
	CHECK(seen(filtered, 0, "other") == 0 && seen(deaf, 14, "wanted") == 0 && seen(raw, 14, "wanted") == 0, "packets that are not for it");
	int a = seen(group[0], 0, "wanted"), b = seen(group[1], 0, "wanted");
	CHECK(a + b >= 20, "the group got %d and %d", a, b);
	CHECK(promiscuous() && multicast(), "the memberships are not there");
	MUST(setsockopt(raw, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &promisc, sizeof promisc));
	CHECK(promiscuous(), "the second membership is not there");
	MUST(setsockopt(raw, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &promisc, sizeof promisc));
	MUST(setsockopt(raw, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &multi, sizeof multi));
	CHECK(!promiscuous() && !multicast(), "there are more memberships than there were");
	pass();
}
