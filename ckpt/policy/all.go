package policy

// all is the table of the policies, by name. The names and values are part of the image format:
// none is ever given another meaning.
var all = []Key{
	{
		Name: "files", About: "an open file that has changed since the checkpoint", Restore: true,
		Values: []Value{
			{"changed", "is opened at its old offset, and the change is in NAME.log"},
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
}
