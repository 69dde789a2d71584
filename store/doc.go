// Package store keeps checkpoint images: bytes under their BLAKE3 hash, compressed, the
// same chunk never twice, in a plain folder. It knows nothing of processes.
//
// # Folder
//
//	DIR/                     0700, files 0600
//	  version                "ckptfs store 1"; a newer one is refused
//	  lock                   flock of the one process that has the store open, and its pid
//	  packs/ID.pack          chunks; immutable
//	  index/ID.run           where each chunk is; can be made again from the packs
//	  index/damaged          copies of chunks that were found damaged, see badlist.go
//	  images/ID.img          one record for each image
//	  */*.tmp                unfinished; removed by the next Open
//
// An ID is 16 random bytes in hex. Names of images stand inside the records.
//
// # Pack
//
// All integers are little endian. Offsets are not stored: chunks stand one after the other.
//
//	header  40  magic "ckptpack", version 4, flags 4 (0), ID 16, created 8 (Unix ns)
//	chunks      as they are (codec 0) or a zstd frame (codec 1)
//	footer  40  for each chunk: hash 32, stored length 4, raw length 3, codec 1
//	tail    64  chunks 4, version 4, ID 16, BLAKE3 of header, footer and tail so far 32, magic "kcaptpkc"
//
// A pack is full at 64 MiB or 65,536 chunks; every Commit seals the one being written.
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
//  1. Put looks the hash up: among chunks on their way, in memory, in the runs. What is
//     there is only referred to. All-zero chunks are never stored.
//  2. New chunks go through a bounded queue to one worker per CPU, which compresses and
//     writes into the open pack. One pack serves all ingests.
//  3. The chunk list grows beside; a full leaf goes the same way as a chunk.
//  4. Commit waits for its chunks, seals the pack (footer, fsync, rename, fsync of the
//     folder), then writes the record the same way. Only now the image is listed.
//
// A pack that cannot be written is given up, and with it every ingest that runs: any of them
// may refer to it. If nothing was committed since the store was idle, Abort removes all packs
// written since; otherwise they are garbage until GC.
//
// # GC
//
//  1. Memory is flushed; only packs that the runs know are looked at. From now on every
//     reference that a Put makes marks its chunk as alive.
//  2. Running ingests (each waited for until no Put is half done), listed images and open
//     readers are walked and all they refer to marked: a bit for each index entry.
//  3. Packs of which a quarter is dead, and small ones if there are many, are condemned:
//     what is not marked there is from now on not found by Put.
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
// # Retention
//
// Prune takes images off the list by age, count and size; the next GC frees what only they
// needed. What an image would free is not in its record, since others refer to its chunks.
// So for the size the images that stay anyway are walked first, then the others from the
// newest on, each chunk counted once, until the bound is reached: the rest goes. An image
// that the user renamed is never removed, one that another host took is left to that host.
//
// # Damage
//
// Every chunk read is checked against its hash. If it is wrong another copy is tried; then
// the error names image, offset, chunk and pack. A copy known to be damaged or missing is not
// reused, also not by the next process, so storing the same content again heals all images
// that need it. Who has no other tries the damaged copy again: the disk may have recovered. A
// damaged index block or run is made again from its packs.
package store
