// A load inside redis 7, as a module: no client and no socket is needed while a checkpoint is
// taken. Built with -shared; redis is told
//
//	loadmodule redisload.so READY RESULT GO CONTROL MIB RATE
//
// It closes the port, fills the store to MIB (INFO's used_memory) and is ready. From then on
// it makes RATE updates a second and as many reads. READY, RESULT and GO are those of prog.h:
// at the end every key is checked. CONTROL is a file that holds one command:
//
//	port N    listen again, on port N of 127.0.0.1; 0: close it
//	rate N    this many updates a second from now on
//
// The file is removed when the command was carried out. For clients there is REDISLOAD.VERIFY,
// which checks every key and says how many there are and how many updates were made.
//
// No state is kept beside the keys but the number of updates: which key the n-th one hits, and
// the value of a key after its v-th update, are functions of n and v. So a check knows what has
// to stand in every key to the byte, and the load dirties nothing that redis itself would not.
// A value ends with an FNV-1a hash of what is before it, for a check from outside.
#include "prog.h"

// What is used of the module API of redis; a module finds each function by its name.
typedef struct RedisModuleCtx RedisModuleCtx;
typedef struct RedisModuleString RedisModuleString;
typedef struct RedisModuleCallReply RedisModuleCallReply;
typedef void timer_proc(RedisModuleCtx *, void *);
typedef int command_proc(RedisModuleCtx *, RedisModuleString **, int);

#define API_VERSION 1
#define OK 0
#define ERR 1
#define REPLY_ERROR 1

static struct {
	void (*SetModuleAttribs)(RedisModuleCtx *, const char *name, int version, int api);
	int (*CreateCommand)(RedisModuleCtx *, const char *name, command_proc *, const char *flags, int, int, int);
	uint64_t (*CreateTimer)(RedisModuleCtx *, long long ms, timer_proc *, void *);
	const char *(*StringPtrLen)(const RedisModuleString *, size_t *);
	RedisModuleCallReply *(*Call)(RedisModuleCtx *, const char *command, const char *fmt, ...);
	int (*CallReplyType)(RedisModuleCallReply *);
	const char *(*CallReplyStringPtr)(RedisModuleCallReply *, size_t *);
	long long (*CallReplyInteger)(RedisModuleCallReply *);
	void (*FreeCallReply)(RedisModuleCallReply *);
	int (*ReplyWithError)(RedisModuleCtx *, const char *);
	int (*ReplyWithSimpleString)(RedisModuleCtx *, const char *);
	void (*Log)(RedisModuleCtx *, const char *level, const char *fmt, ...);
} api;

#define TICK 10 // ms

static const char *control_path;
static uint64_t want_bytes, rate; // to fill; updates a second
static uint64_t keys, updates;
static uint64_t owed; // thousandths of an update, left over from the ticks before

static int find_api(RedisModuleCtx *ctx)
{
	int (*get)(const char *, void *) = ((void **)ctx)[0];
#define FIND(f)                                                                                \
	if (get("RedisModule_" #f, &api.f) != OK)                                              \
		return ERR;
	FIND(SetModuleAttribs)
	FIND(CreateCommand)
	FIND(CreateTimer)
	FIND(StringPtrLen)
	FIND(Call)
	FIND(CallReplyType)
	FIND(CallReplyStringPtr)
	FIND(CallReplyInteger)
	FIND(FreeCallReply)
	FIND(ReplyWithError)
	FIND(ReplyWithSimpleString)
	FIND(Log)
	return OK;
}

// call is Call for a command that has to succeed.
#define call(ctx, command, ...)                                                                \
	({                                                                                     \
		RedisModuleCallReply *r_ = api.Call(ctx, command, __VA_ARGS__);                \
		CHECK(r_, "%s", command);                                                      \
		size_t n_ = 0;                                                                 \
		const char *s_ = api.CallReplyStringPtr(r_, &n_);                              \
		CHECK(api.CallReplyType(r_) != REPLY_ERROR, "%s: %.*s", command, (int)n_, s_ ? s_ : "?"); \
		r_;                                                                            \
	})

// Values.

#define MAX_VALUE 4200 // bytes

static const char *const words[64] = {
	"order", "paid", "waiting", "address", "street", "north", "south", "delivery", "number", "customer", "returns",
	"open", "closed", "invoice", "account", "balance", "euro", "dollar", "item", "colour", "green", "blue", "large",
	"small", "shirt", "shoes", "winter", "summer", "sale", "price", "amount", "today", "tomorrow", "express", "parcel",
	"weight", "total", "tax", "included", "voucher", "accepted", "refused", "signed", "by", "neighbour", "left", "at",
	"the", "door", "in", "stock", "since", "monday", "friday", "please", "call", "before", "noon", "thanks", "again",
	"new", "old", "spare", "part"};

static const char alphabet[64] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static uint64_t fnv1a(const char *p, size_t n)
{
	uint64_t h = 0xcbf29ce484222325ull;
	for (size_t i = 0; i < n; i++)
		h = (h ^ (unsigned char)p[i]) * 0x100000001b3ull;
	return h;
}

static int key_name(char *buf, uint64_t key) { return sprintf(buf, "item:%09lu", (unsigned long)key); }

// noise writes n characters that do not compress beyond 6 bits each.
static char *noise(char *p, size_t n, uint64_t *seed)
{
	for (uint64_t bits = 0, have = 0; n > 0; n--, have--, bits >>= 6) {
		if (have == 0)
			bits = mix((*seed)++), have = 10;
		*p++ = alphabet[bits & 63];
	}
	return p;
}

// text writes about n characters of words.
static char *text(char *p, size_t n, uint64_t *seed)
{
	char *end = p + n;
	for (uint64_t bits = 0, have = 0; p < end; have--, bits >>= 6) {
		if (have == 0)
			bits = mix((*seed)++), have = 10;
		p = stpcpy(p, words[bits & 63]);
		*p++ = ' ';
	}
	return p;
}

// value writes what the key holds after its version-th update: 100 bytes to 4 KiB, 1.1 KiB on
// average. Every fourth key is mostly noise. The length hardly changes from update to update.
static size_t value(char *buf, uint64_t key, uint64_t version)
{
	uint64_t seed = mix(key * 0x10001 + version);
	double u = (double)(mix(key) >> 11) / (1ull << 53);
	size_t body = (size_t)(3800 * u * u * u) + mix(seed) % 32;
	char *p = buf + sprintf(buf, "{\"key\":\"item:%09lu\",\"version\":%lu,\"id\":\"", (unsigned long)key, (unsigned long)version);
	p = noise(p, 22, &seed);
	p = stpcpy(p, "\",\"data\":\"");
	p = key % 4 == 0 ? noise(p, body, &seed) : text(p, body, &seed);
	p += sprintf(p, "\",\"sum\":\"%016lx\"}", (unsigned long)fnv1a(buf, p - buf));
	return p - buf;
}

// The load.

// victim is the key of the n-th operation: half of them go to a 64th of the keys. Those are
// spread over all of the store: neighbours by number were neighbours in memory after the fill.
static uint64_t victim(uint64_t n, uint64_t stream)
{
	uint64_t r = mix(n * 2 + stream), rank = (r >> 1) % (r & 1 ? keys : keys / 64 + 1);
	return rank * 2654435761 % keys; // a prime: no two ranks give the same key
}

static void set(RedisModuleCtx *ctx, uint64_t key, uint64_t version)
{
	char name[32], buf[MAX_VALUE];
	size_t n = value(buf, key, version);
	api.FreeCallReply(call(ctx, "SET", "bb", name, (size_t)key_name(name, key), buf, n));
}

// get copies the value of a key and returns its length.
static size_t get(RedisModuleCtx *ctx, uint64_t key, char *buf)
{
	char name[32];
	RedisModuleCallReply *r = call(ctx, "GET", "b", name, (size_t)key_name(name, key));
	size_t n = 0;
	const char *s = api.CallReplyStringPtr(r, &n);
	CHECK(s && n <= MAX_VALUE, "%s: %zu bytes", name, n);
	memcpy(buf, s, n);
	api.FreeCallReply(r);
	return n;
}

// version_of reads the version that a value claims to be.
static uint64_t version_of(const char *buf, size_t n)
{
	static const char mark[] = "\"version\":";
	const char *v = memmem(buf, n, mark, sizeof mark - 1);
	return v ? strtoul(v + sizeof mark - 1, NULL, 10) : ~0ull;
}

static void update(RedisModuleCtx *ctx, uint64_t n)
{
	char buf[MAX_VALUE + 1];
	uint64_t key = victim(n, 0);
	size_t len = get(ctx, key, buf);
	buf[len] = 0;
	set(ctx, key, version_of(buf, len) + 1);
}

static void read_one(RedisModuleCtx *ctx, uint64_t n)
{
	char buf[MAX_VALUE + 1], want[MAX_VALUE];
	uint64_t key = victim(n, 1);
	size_t len = get(ctx, key, buf);
	buf[len] = 0;
	uint64_t version = version_of(buf, len);
	CHECK(value(want, key, version) == len && memcmp(want, buf, len) == 0, "key %lu is torn: %.*s", (unsigned long)key, (int)len, buf);
}

static uint64_t used_memory(RedisModuleCtx *ctx)
{
	RedisModuleCallReply *r = call(ctx, "INFO", "c", "memory");
	size_t n;
	const char *s = api.CallReplyStringPtr(r, &n), *u = s ? memmem(s, n, "used_memory:", 12) : NULL;
	CHECK(u, "INFO memory");
	uint64_t used = strtoull(u + 12, NULL, 10);
	api.FreeCallReply(r);
	return used;
}

static void listen_on(RedisModuleCtx *ctx, const char *port)
{
	api.FreeCallReply(call(ctx, "CONFIG", "ccc", "SET", "port", port));
}

// verify checks every key to the byte. It returns NULL or what is wrong.
static const char *verify(RedisModuleCtx *ctx)
{
	static char why[256];
	RedisModuleCallReply *r = call(ctx, "DBSIZE", "");
	long long have = api.CallReplyInteger(r);
	api.FreeCallReply(r);
	if (have != (long long)keys) {
		snprintf(why, sizeof why, "ERR there are %lld keys, not %lu", have, (unsigned long)keys);
		return why;
	}
	uint32_t *version = calloc(keys, sizeof *version);
	CHECK(version, "calloc");
	for (uint64_t n = 0; n < updates; n++)
		version[victim(n, 0)]++;
	const char *bad = NULL;
	for (uint64_t k = 0; k < keys && !bad; k++) {
		char buf[MAX_VALUE], want[MAX_VALUE];
		size_t len = get(ctx, k, buf);
		if (value(want, k, version[k]) != len || memcmp(buf, want, len) != 0) {
			snprintf(why, sizeof why, "ERR key %lu is not its version %u after %lu updates", (unsigned long)k, version[k],
				 (unsigned long)updates);
			bad = why;
		}
	}
	free(version);
	return bad;
}

static int verify_command(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
	(void)argv, (void)argc;
	const char *bad = verify(ctx);
	if (bad)
		return api.ReplyWithError(ctx, bad);
	char said[128];
	snprintf(said, sizeof said, "%lu keys are right after %lu updates", (unsigned long)keys, (unsigned long)updates);
	return api.ReplyWithSimpleString(ctx, said);
}

// obey carries out what the control file says, if there is one.
static void obey(RedisModuleCtx *ctx)
{
	int fd = open(control_path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	char line[64] = "", word[16], arg[32] = "";
	CHECK(read(fd, line, sizeof line - 1) > 0, "%s", control_path);
	close(fd);
	CHECK(sscanf(line, "%15s %31s", word, arg) >= 1, "%s", line);
	if (strcmp(word, "port") == 0)
		listen_on(ctx, arg);
	else if (strcmp(word, "rate") == 0)
		rate = strtoul(arg, NULL, 10);
	else
		fail("control: %s", line);
	MUST(unlink(control_path));
}

// tick is a moment of the steady load.
static void tick(RedisModuleCtx *ctx, void *arg)
{
	(void)arg;
	obey(ctx);
	if (gone_ahead()) {
		const char *bad = verify(ctx);
		if (bad)
			fail("%s", bad);
		pass();
	}
	for (owed += rate * TICK; owed >= 1000; owed -= 1000, updates++) {
		update(ctx, updates);
		read_one(ctx, updates);
	}
	api.CreateTimer(ctx, TICK, tick, NULL);
}

// filler adds keys until the store is as large as it should be. Redis goes on between two calls.
static void filler(RedisModuleCtx *ctx, void *arg)
{
	(void)arg;
	if (keys == 0)
		listen_on(ctx, "0");
	for (int i = 0; i < 1000; i++)
		set(ctx, keys++, 0);
	if (used_memory(ctx) < want_bytes) {
		api.CreateTimer(ctx, 1, filler, NULL);
		return;
	}
	api.CreateTimer(ctx, TICK, tick, NULL);
	ready();
}

int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
	if (find_api(ctx) != OK)
		return ERR;
	api.SetModuleAttribs(ctx, "redisload", 1, API_VERSION);
	if (argc != 6) {
		api.Log(ctx, "warning", "redisload: READY RESULT GO CONTROL MIB RATE");
		return ERR;
	}
	char *args[7] = {"redisload"};
	for (int i = 0; i < argc; i++)
		args[i + 1] = strdup(api.StringPtrLen(argv[i], NULL));
	begin(argc + 1, args);
	control_path = args[4];
	want_bytes = strtoul(args[5], NULL, 10) << 20;
	rate = strtoul(args[6], NULL, 10);
	if (api.CreateCommand(ctx, "redisload.verify", verify_command, "readonly", 0, 0, 0) != OK)
		return ERR;
	api.CreateTimer(ctx, 1, filler, NULL);
	return OK;
}
