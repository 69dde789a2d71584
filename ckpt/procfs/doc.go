// Package procfs parses what /proc tells of processes, see proc(5).
//
// Every parser is a pure function: the bytes of one file in, structs out. None opens a file,
// none panics whatever it is given, and none guesses: text that it does not understand is an
// error that names the file, the line and the field. Lines and keys that a newer kernel adds
// are skipped or kept raw, as the doc comment of each parser says.
//
// Sizes are in bytes although the kernel prints kB, and device numbers are encoded as in
// st_dev, so that they compare equal to what stat(2) returns.
package procfs
