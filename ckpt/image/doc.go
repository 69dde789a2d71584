// Package image is the format of a checkpoint: every type that is ever written to one, how
// it is encoded, and how it is decoded without trusting it.
//
// An image is one self-contained file, everything little endian. Up to the trailer all parts
// begin on a page (4096 bytes) and are padded to one with zeros:
//
//	+--------------------+ 0
//	| header             | 4096 bytes, drawn below
//	+--------------------+ 4096
//	| manifest           | CBOR (RFC 8949, core deterministic encoding) of Manifest
//	+--------------------+ head length
//	| data               | memory of MMs (by VMA, by extent), memory of Segments (by extent),
//	|                    | Blobs (each padded to a page), in the order of the manifest
//	+--------------------+ head length + data length
//	| trailer            | BLAKE3 of every chunk, 32 bytes each
//	|                    | root hash, 32 bytes
//	|                    | end magic, 8 bytes: 0x89 "ckptEND"
//	+--------------------+ total size
//	| zeros              | whatever a tool padded the file with; ignored
//	+--------------------+
//
// The header:
//
//	   0   8  magic: 0x89 "CKPT" CR LF 0x1a
//	   8   4  version of the format: 2
//	  12   4  length of the header: 4096
//	  16   4  page size: 4096
//	  20   4  chunk size: 16384; 65536 in version 1, which is the same otherwise
//	  24   8  length of the manifest without its padding
//	  32   8  head length: header and padded manifest
//	  40   8  data length
//	  48   8  trailer length
//	  56   8  total size: the sum of the three
//	  64   8  number of chunks
//	  72      zeros
//	4064  32  BLAKE3 of the bytes 0–4063 of the header and of the padded manifest
//
// Magic, version and header length stay where they are in every version to come. The total
// size is known as soon as the manifest is, before any page is read; it is what stat(2) shows.
//
// # Chunks
//
// Hashes, the store and transfers work on chunks. The list of chunks follows from the manifest
// and is never stored, see Layout:
//
//  1. The head is cut at every multiple of the chunk size.
//  2. Data is cut where the region (VMA, segment or blob) changes.
//  3. Inside a region it is cut where the address, for segments and blobs the offset, passes a
//     multiple of the chunk size.
//
// So a chunk is all stored pages of one region inside one aligned window of 16 KiB, and equal
// memory gives equal chunks wherever it stands in the file. The root hash, BLAKE3 in its key
// derivation mode over all chunk hashes, covers every byte before the trailer and is the
// identity of the image.
//
// # Manifest
//
// Structs are maps with the field numbers of types.go as keys, so a field may be renamed but a
// number is never reused. Go strings are CBOR byte strings, since paths on Linux are bytes and
// not text. Fields marked omitempty or omitzero are left out when empty; all others are
// always there. A reader refuses, by name, a field that it does not know, and a name in
// Manifest.Features that it does not know: a writer that adds a field which older readers
// cannot restore adds a feature name with it, so that their error says what is missing.
//
// An image is hostile input. Open looks at the header first and allocates nothing that the
// size of the file does not cover; the manifest is checked against its hash, then walked
// against the types (every count against the bytes that are left, every number against its
// range, see walker), then decoded, then checked to make sense as a whole (Manifest.Validate).
// Whoever gets a Reader may rely on all of that. Only Reader.Verify looks at the data.
package image
