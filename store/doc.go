// Package store keeps checkpoint images: bytes under their BLAKE3 hash, compressed, the
// same chunk never twice, in a plain folder or in a bucket that many machines share. It knows
// nothing of processes.
//
// # Rooms
//
// This package is the door: it opens a store, takes images in, commits, lists, reads and verifies
// them, and says when to collect. What these work with stands in rooms, each of which can be read
// by itself, and of which none knows the door (test/arch_test.go says who may know whom):
//
//	chunk   what a chunk is: its hash, its bounds
//	layout  the names in a store, its version file and its lock (see Folder)
//	disk    IDs, names of files, and how a file becomes durable
//	secret  keys, and what is derived from them (see Secrets)
//	codec   how chunks are compressed, and checked on the way back
//	pack    the format of packs, their writers, open files, and the cache of those in a bucket (see Pack)
//	index   runs, their filters and merges, lookups, damaged copies, the marks of a GC (see Index)
//	tree    the chunk lists of images (see Image)
//	record  the records of images, leases and markers (see Image, Bucket)
//	retain  which images go for their age (see Retention)
//	bucket  the calls to an object store, and uploads (see Bucket)
//	fleet   what machines that share a bucket tell each other: markers, leases, records, runs
//	collect what is needed, moving it, and removing the rest: GC and Settle
//	cache   buffers that are shared, decoded chunks that may be asked for again, and the window of
//	        what a running ingest got last
//	damage  what is lost, and whose it is
//	ahead   reading an image by its chunks, and ahead of who reads it in order
//
// Beside them lossyfs is a disk that loses power, and s3test an S3 server that misbehaves; both are
// for tests.
//
// # Folder
//
//	DIR/                     0700, files 0600
//	  version                "ckptfs store 3"; a newer one is refused. Then lines: "id", random;
//	                         with a key "key" and its fingerprint; in a bucket "grace"
//	  lock                   flock of the one process that has the store open, and its pid
//	  packs/ID.pack          chunks; immutable
//	  index/ID.run           where each chunk is; can be made again from the packs
//	  index/damaged          copies of chunks that were found damaged, see index/badlist.go
//	  images/ID.img          one record for each image
//	  reserve                blocks for the index of a full disk, so that GC can begin
//	  */*.tmp                unfinished; removed by the next Open
//
// An ID is the time in ms, 6 bytes big endian, and 10 random bytes, in hex: what is younger than
// a time stands together in a listing. Names of images stand inside the records.
//
// # Pack
//
// All integers are little endian. Offsets are not stored: chunks stand one after the other.
//
//	header  40  magic "ckptpack", version 4, flags 4 (1: encrypted), ID 16, created 8 (Unix ns)
//	chunks      as they are (codec 0), a zstd frame (1), a MinLZ block (3), or what layout 2 had in
//	            its place, an s2 block of all but the last byte and that byte (2); they save 1/16
//	footer  40  for each chunk: hash 32, stored length 4, raw length 3, codec 1
//	tail    64  chunks 4, version 4, ID 16, BLAKE3 of header, footer and tail so far 32, magic "kcaptpkc"
//
// A pack is full at 64 MiB or 65,536 chunks; every Commit seals the one being written. Bit 0 of
// the last byte of its ID says that it holds nodes (see Image), bit 1 chunks that ingests have
// stored fast (see Settling).
//
// # Image
//
//	record      magic "ckptimg1", length 4, CBOR, BLAKE3 of all before 32
//	            CBOR: name, created, unique bytes, chunks, tree of the data, trees of the attachments,
//	            kept, host, series
//	tree        root node: hash, level, bytes below
//	node        "CPTN", level 1, zero 3, entries 4, then
//	  level 0   36 for each chunk: hash 32, length 4 (top bit: all zeros, not stored)
//	  above     40 for each node below: hash 32, bytes below 8
//
// Nodes are chunks like any other and stand in packs. A node ends after an entry whose
// hash has six zero bits (64 entries on average, 512 at most), so two images that differ in
// one chunk differ in one leaf and its ancestors.
//
// # Index
//
// A run is sorted by hash and needs nothing but itself. Memory holds 200 bytes for each block
// of 85 chunks, and the chunks of packs sealed since the last run.
//
//	header  64  magic "ckptrun2", packs 4, zero 4, chunks 8, CRC-32C of keys and filter 4, zero 4,
//	            BLAKE3 of this and the table 32
//	table   32  for each pack: ID 16, size 8, created 8; padded to 4096
//	block 4096  85 entries of 48: hash 32, offset 4, stored 4, raw 3, codec 1, pack 4; then CRC-32C 4, zero 12
//	keys     8  for each block: first 8 bytes of its first hash
//	filter 192  for each block: 16 parts of its range, the slot where each ends 1; for each entry
//	            bytes 9 and 10 of its hash; zero 6
//
// A lookup goes through the runs from the newest on. The keys tell the block, the top bits of
// the distance from its key tell the part (of the range to the next block's key, 8 to 16 parts
// are in use), and only if a fingerprint there is equal is the block read. A foreign hash gets
// so far one time in 6,000 to 12,000 for each run. Measured with ten million chunks in six runs:
// a chunk that is there takes 1.0005 reads, one that is not 0.0008 (at worst, with the fifteen
// runs that the rule below can leave, 0.0025); 23 MiB of memory, 30 ms of processor time to
// open, and 26 MiB more while all of it is merged.
//
// Head, table, keys and filter are checked when a run is opened, a block when it is read, and
// whoever walks a run (merges, GC, Verify) also compares the filter with the blocks. A run
// that is damaged, or of the format before ("ckptrun1", without filter), is made again from
// its packs; so is the whole index if it is lost.
//
// Memory is flushed into a new run at 65,536 to 196,607 chunks and at Close; a run that is not
// more than twice as long as all newer ones together is merged with them. The lock is not held
// while a run is written, nor while a block is read: only if what was found is gone when the
// read is over, the lookup is done again with the lock.
//
// # How an image comes to be
//
//  1. Whoever makes the image fills blocks of some neighbouring chunks, several at once: 64 KiB,
//     hashed, looked up and compressed by one goroutine while they are in its processor's cache.
//     What is in memory, in the runs or on its way already is only referred to. All-zero
//     chunks are never stored.
//  2. New chunks gather in batches. One goroutine writes these into the open pack (several would
//     wait for each other at the file); a batch that is not full goes when somebody waits for it.
//     One pack serves all ingests, and another one takes the nodes. The disk is asked to
//     take what was written every 8 MiB, so that little is left for Commit.
//  3. Blocks are appended in the image's order. The chunk list grows; a full leaf goes the same
//     way as a chunk.
//  4. Commit waits for its chunks, seals the packs (footer, fsync, rename, fsync of the folder)
//     and writes the record beside (fsync); when the packs have their names the record gets
//     its own, and the folder is synced. Only now the image is listed.
//
// A pack that cannot be written is given up, and with it every ingest that runs: any of them
// may refer to it. If nothing was committed since the store was idle, Abort removes all packs
// written since; otherwise they are garbage until GC.
//
// # GC
//
//  1. Memory is flushed; only packs that the runs know are looked at. From now on every
//     reference that a Store makes marks its chunk as alive.
//  2. Running ingests (each waited for until no Store is half done), listed images and open
//     readers are walked and all they refer to marked: a bit for each index entry.
//  3. Packs of which a quarter is dead, and small ones if there are many, are condemned:
//     what is not marked there is from now on not found by Store.
//  4. Live chunks are checked and copied into new packs; when those are sealed the old
//     packs are removed. The index is rewritten last; until then a removed pack is skipped.
//
// A pack with a damaged chunk that is needed and nowhere else stays. One whose footer is
// damaged is rewritten from what the index knows; if that knows nothing it is removed as soon
// as no image lacks anything.
//
// At no moment is there a reference whose chunk is not in a sealed pack, so a crash
// leaves garbage at worst.
//
// # Settling
//
// Whoever takes a checkpoint waits for it, and zstd is what they would wait for: MinLZ takes
// a fifth of the time, and two thirds more space. So it is a matter of levels, as in a
// log-structured tree:
//
//  1. Ingests into a folder write MinLZ, into packs whose IDs say so: no footer must be read to
//     find them. In a bucket the network is the limit and rewriting costs requests: zstd at once.
//  2. Settle takes the oldest such packs, about a GiB at a time, of those that the runs know.
//     It does not ask what is needed: to walk all images would take longer than to rewrite what
//     one checkpoint brought, and GC goes before it where there is garbage.
//  3. All chunks of a pack that no other sealed pack has are read in order, checked, encoded by
//     one goroutine or several, and appended to packs of the usual sort in the same order.
//  4. When those are sealed the old packs are removed, as by GC; a reader that comes too late
//     for the old place finds the new one. References are hashes, so nobody else notices.
//
// Who stops Settle, or kills it, loses nothing: chunks that are in sealed packs already are
// passed over the next time. What GC moves out of such packs it settles too. A pack that turns
// out to be damaged, or older than the bit in its ID, is left to GC.
//
// # Retention
//
// Prune takes images off the list by age, count and size; the next GC frees what only they
// needed. What an image would free is not in its record, since others refer to its chunks.
// So for the size the images that stay anyway are walked first, then the others from the
// newest on, each chunk counted once, until the bound is reached: the rest goes. An image
// that the user renamed is never removed, one that another host took is left to that host.
//
// # Secrets
//
// With a key (32 random bytes in a file) nothing at rest tells more than sizes and times. All
// keys below are derived from it by BLAKE3 in its key derivation mode.
//
//   - The name of a chunk in packs, nodes and index is the keyed BLAKE3 of its hash, so nobody
//     without the key can tell whether some content is in the store.
//   - A chunk is compressed, then sealed with AES-256-GCM (16 bytes more). Every pack has a key of
//     its own, made of its random ID; the nonce is the chunk's offset there, which is written
//     once, so no two seals share both. Name, length and codec are authenticated with it.
//   - A record is "ckptimgs", salt 16, and the same record sealed under a key made of the
//     salt; its ID is authenticated. Leases are sealed likewise.
//   - Footers are checked with a keyed hash. The version file holds a fingerprint of the key:
//     a wrong one is refused at once.
//
// What the key does not hide: how many images there are, how large chunks are compressed, which
// are written together and when. Who can write to the disk can put an old state back.
//
// # Bucket
//
// A bucket holds the same files as objects, below a prefix: version, packs/ID.pack,
// images/ID.img, index/ID.run, and two more kinds:
//
//	gc/ID.gone       a marker: packs that a GC wants to remove, an ID a line
//	leases/ID.lease  the chunk lists that a machine is reading, as long as it reads
//
// Each machine has a folder of its own beside it, with its index, the packs it wrote and blocks
// of 1 MiB of those it read, the least recently used going first when a limit is reached. What
// comes out of the bucket is checked like what comes off a disk; what came damaged is fetched
// again before it counts as damaged.
//
// A pack is uploaded in parts of 8 MiB while it is being written. A machine learns of others'
// packs by listing what is younger than the youngest it knows, and reads their footers; where
// there are many it fetches a run instead, which a GC has put there. Calls are tried again with
// growing pauses for Options.Patience; all writes carry the SHA-256 of their content, which the
// server compares.
//
// Nothing is locked, so a machine that dies holds nobody up. Instead nobody removes a pack that
// anybody may come to refer to:
//
//  1. GC marks what is alive as in a folder, from the records of all machines and all leases. It
//     copies what is alive out of packs that are mostly dead, then writes a marker that names
//     the packs it wants to remove. Packs younger than four grace times are left alone.
//  2. Who knows of the marker does not refer to those packs any more: a Store that finds a chunk
//     only there stores it again. A copy in a marked pack counts for nothing, for GC as well, so
//     that two GCs cannot each rely on the copy that the other one removes.
//  3. While an ingest runs, its machine looks for markers every quarter of the grace time, and
//     stores again what the ingest refers to in marked packs ("rescue"). It does so once more
//     before the record is written. If it could not look for half the grace time, the ingest
//     fails; the same if the writing of the record took so long.
//  4. A GC that finds a marker older than the grace time (by the server's clock) marks anew.
//     It removes those packs in which still nothing is alive, each within a quarter of the
//     grace time of having looked at records, leases and markers.
//  5. Readers renew a lease every quarter of the grace time, so an image that is removed while it
//     is read stays readable.
//  6. A rename writes the record on the condition that it still is what was read (If-Match): an
//     image that another machine removes just then does not come back. It can on a server
//     that knows no conditions, whole, as long as this takes less than the grace time.
//
// So between the last moment at which somebody may have begun to refer to a pack, and the first
// at which it is removed, lies a quarter of the grace time at least: by that much a listing may
// be behind. An object that a listing does not show is only believed gone when the server says
// so for its key. Clocks of machines do not matter: only the server's, and how fast time
// passes, sleep included. The grace time (15 minutes) is in the version object: all use the same.
//
// The index keeps one copy of a chunk of which two machines each wrote one. If a GC removes just
// that one, whoever misses the chunk looks through the footers of all packs again.
//
// On paper: 10,000 machines, 100 PB logical. A checkpoint costs two uploads of packs (a few
// parts if it brings more than 8 MiB), one record, a listing of markers before and after, one of
// young packs: some eight requests, and a range read for each pack that others have written
// meanwhile. With one checkpoint per machine every ten minutes that is 130 requests a second,
// a few per cent of what one prefix of S3 takes. At the ratio of the table below (about 6; ten
// and more where checkpoints are frequent) 100 PB are 17 PB in 260 million packs and 4e12
// chunks: no machine can hold such an index. So the fleet is cut into prefixes, each a store of
// its own, by what resembles each other: workers of one program on neighbouring machines. An
// entry takes 2.4 bytes of memory and 51 of disk on each machine, and reading the runs is what a
// new one does first. At 100 million chunks, which are 1.6 TB of unlike memory, 0.4 TB stored,
// 6,500 packs, a prefix costs each of its machines 240 MB of memory and 5 GB of disk, a full
// listing 7 requests, and a start from nothing half a minute. 1.7 TB stored a machine are four
// times that: so one machine to a prefix is the limit where nothing is shared, and a hundred
// where they share nearly all. Beyond, the index would have to be sharded by hash and asked over
// the network, which this package does not do. Hard limits: 2^31 chunks and 2^20 packs in a run,
// 500,000 packs in a marker.
//
// # Chunk size and codec
//
// Measured with test/bench/chunks on 30 images of 5286 MiB: redis, postgres, python3, node and
// java of Debian 12 under load, each five successive checkpoints 5 s apart and one of a second
// instance. dedupe: bytes before and after deduplication; ratio: both together. meta: footers,
// index, chunk lists and the images' own hash lists. Sizes in MiB, from one frame in sixteen.
//
//	chunks  codec          dedupe  compr  ratio   meta     all   redis postgres python3   node   java
//	  4 KiB s2               1.95   2.55   4.39  141.4  1204.2   263.3     86.7   215.0  192.8  446.5
//	        MinLZ fastest    1.95   2.70   4.62  141.4  1145.0   253.9     77.9   202.9  178.2  432.2
//	        MinLZ superfast  1.95   2.14   3.75  141.6  1407.8   339.7     82.7   240.1  230.2  515.0
//	        zstd fastest     1.95   3.34   5.54  141.3   953.6   205.6     58.1   155.9  149.1  384.9
//	        zstd with probe  1.95   3.26   5.43  141.5   974.1   205.6     78.2   155.9  149.2  385.2
//	 16 KiB s2               1.51   2.70   3.96   40.8  1336.2   414.7     84.0   215.9  164.1  457.5
//	        MinLZ fastest    1.51   2.91   4.26   40.8  1242.0   393.4     74.2   198.9  150.5  425.0
//	        MinLZ superfast  1.51   2.38   3.51   41.0  1506.8   511.4     78.5   227.1  189.7  500.1
//	        zstd fastest     1.51   3.73   5.40   40.9   978.2   307.9     50.2   137.1  116.8  366.2
//	        zstd with probe  1.51   3.73   5.40   41.0   978.4   307.9     50.3   137.1  116.8  366.2
//	 64 KiB s2               1.25   2.93   3.62   11.6  1459.3   569.5     93.2   212.3  152.2  432.2
//	        MinLZ fastest    1.25   3.06   3.78   11.6  1397.9   563.7     83.1   197.6  141.0  412.5
//	        MinLZ superfast  1.25   2.69   3.33   11.7  1586.3   655.1     85.6   217.7  169.5  458.4
//	        zstd fastest     1.25   3.98   4.92   11.6  1075.2   424.1     53.2   142.8  108.2  347.0
//	        zstd with probe  1.25   3.98   4.92   11.6  1075.2   424.1     53.2   142.8  108.2  347.0
//	256 KiB s2               1.20   3.06   3.65    3.3  1447.0   566.0     91.9   206.4  156.1  426.6
//	        MinLZ fastest    1.20   3.20   3.82    3.3  1381.9   558.0     79.9   191.2  142.9  409.9
//	        MinLZ superfast  1.20   2.98   3.56    3.3  1484.1   592.3     82.4   203.4  169.7  436.2
//	        zstd fastest     1.20   4.20   5.01    3.3  1055.5   418.4     50.1   136.9  109.4  340.7
//	        zstd with probe  1.20   4.20   5.01    3.3  1055.5   418.4     50.1   136.9  109.4  340.7
//
// GB of image a second and core, hashed and in memory:
//
//	                   4 KiB        16 KiB       64 KiB      256 KiB
//	              ingest read  ingest read  ingest read  ingest read
//	s2           0.57 0.82     0.71 1.10     0.70 1.17     0.71 1.19
//	MinLZ fast   0.60 0.82     0.75 1.11     0.71 1.18     0.71 1.22
//	superfast    0.68 0.95     0.88 1.27     0.81 1.34     0.77 1.36
//	zstd         0.21 0.34     0.27 0.59     0.28 0.80     0.26 0.76
//	probe        0.20 0.34     0.26 0.59     0.27 0.80     0.25 0.76
//
// The probe (s2 first, zstd only where that helps) gains nothing: hardly a page of memory is
// incompressible. No zstd is fast enough to wait for and nothing faster small enough to keep, so
// there are two levels (see Settling). 4 KiB would save another 4 % and cost three times the
// metadata and slow reads; at 64 KiB nearly everything a busy program does dirties every chunk.
// So chunks are 16 KiB. For the first level time counts most: MinLZ superfast takes four fifths of
// the time of s2 or MinLZ fastest, hashing and all, and a sixth to a fifth more space until the
// chunk is settled. Where it finds little, MinLZ fastest is tried, which costs nothing on the
// whole. The second level is zstd at its default.
//
// Side by side, the same images in the same order, each durable before the next, medians of three
// runs; restic and borg start for each, our store stays open as it does in a mount. Two cores.
//
//	tool                  MiB  ratio      s  cpu s    ours is as many times as fast
//	restic 0.14        1079.7   4.91   45.3   60.3    8.9
//	borg 1.2, lz4      1855.6   2.85   29.7   26.7    5.8 (5.4 to 5.9 in the three runs)
//	borg 1.2, zstd     1128.3   4.69   40.8   38.4    8.0
//	ckptfs             1494.0   3.55    5.1    8.3
//	ckptfs, settled     925.8   5.72  +16.5  +28.2    in the background
//
// Of the 8.3 s MinLZ takes 3.9, BLAKE3 2.2 and writing to the page cache 0.5. What made it so
// (9.2 s before, on the same two cores): one goroutine hashes, looks up and compresses a block
// while the cache has it, nothing is copied, one goroutine writes, the disk is asked to take what
// is there every 8 MiB, and there is one P more than processors (see SpareProc).
//
// Read back through a mount, 1 MiB at a time as cat does, an image comes at 1.1 to 1.4 GB/s (the
// machine itself varies), a settled one at 0.8: the two processors are then busy for 90 % of the
// time, a third of it with decoding MinLZ and a fifth with BLAKE3, and nothing is copied but by
// the kernel. BLAKE3 checks 2.5 to 3 GB/s and core, MinLZ decodes 2.2, zstd 0.76, and FUSE alone
// moves 4.7 GB/s of a file in memory. It grows with the cores (settled: one 0.39 GB/s, two 0.80),
// so FUSE should be the limit from about six on, for settled images ten.
//
// A redis of 1 GiB under 500 updates and as many reads a second, checkpointed every 10 s for 5
// minutes: 55 MiB of pages of 4 KiB are dirtied between two checkpoints, 190 MiB of windows of
// 16 KiB, 580 of 64. The store grows by 1.95 times the dirtied bytes at first, and what is settled
// takes 0.29 times as much. Over the 5 minutes it grew by 0.4 to 1.6 times all that was dirtied in
// three runs, by how far settling had come, which has the time that redis, its load, and what
// measures them leave.
//
// # Damage
//
// Every chunk read is checked against its hash. If it is wrong another copy is tried; then
// the error names image, offset, chunk and pack. A copy known to be damaged or missing is not
// reused, also not by the next process, so storing the same content again heals all images
// that need it. Who has no other tries the damaged copy again: the disk may have recovered. A
// damaged index block or run is made again from its packs.
package store
