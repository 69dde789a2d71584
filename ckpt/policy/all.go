package policy

// all is the table of the policies, by name. The names and values are part of the image format:
// none is ever given another meaning.
var all = []Key{
	{
		Name: "files", About: "an open file that has changed since the checkpoint", Restore: true,
		Values: []Value{
			{"changed", "is opened at its old offset, and the change is in NAME.log; if another file is in its place, which the process may not open itself, the restore is refused"},
			{"any", "is opened in any case"},
			{"strict", "refuses the restore"},
		},
	},
	{
		Name: "ipc", About: "an object of System V IPC that is still there at the restore, used by nobody", Restore: true,
		Values: []Value{
			{"replace", "is used again with the content of the image, which is in NAME.log"},
			{"refuse", "refuses the restore"},
		},
	},
	{
		Name: "pidfd", About: "a pidfd of a process outside the tree", Dump: true,
		Values: []Value{
			{"refuse", "refuses the checkpoint, and names the process"},
			{"reopen", "is opened again if that very process still runs at the restore; else it tells of one that was killed"},
		},
	},
	{
		Name: "pty", About: "the number of a pseudoterminal whose master is in the tree (N of /dev/pts/N), if it is in use at the restore", Restore: true,
		Values: []Value{
			{"keep", "refuses the restore, and names the holder"},
			{"renumber", "is another one then, which is in NAME.log: a program that opens the old /dev/pts/N by its name finds another terminal"},
		},
	},
	{
		Name: "tcp", About: "a TCP connection to somebody outside the tree", Dump: true,
		Values: []Value{
			{"refuse", "refuses the checkpoint"},
			{"reset", "is in the image as one that the other side has reset: the next read fails with ECONNRESET"},
			{"keep", "goes on after the restore, if the checkpoint kills the tree (--kill): its packets are kept away for up to 15 min, by netfilter; of a tree that goes on, the image has one that its peer will reset"},
			{"close", "is in the image as one that is over: reads end of file, writing fails with EPIPE"},
		},
	},
	{
		Name: "udp", About: "datagrams that wait in a socket of IPv4 or IPv6 to be read", Dump: true,
		Values: []Value{
			{"drop", "are lost, as on a network"},
			{"refuse", "refuse the checkpoint"},
		},
	},
	{
		Name: "unix", About: "a unix socket that is connected to a process outside the tree", Dump: true,
		Values: []Value{
			{"refuse", "refuses the checkpoint, and names the process"},
			{"disconnect", "is restored as if the other end had been closed: it reads what waits in it and end of file, and writing gives EPIPE"},
		},
	},
}
