package main

import (
	"context"

	"github.com/ckptfs/ckptfs/store"
)

func keyNewCommand() *command {
	return &command{
		name: "key new", args: "FILE", short: "make a key for an encrypted store", flags: newFlags("key new"), nargs: [2]int{1, 1},
		long: `Writes a new random key to FILE, readable by its owner only. A file that exists is not touched.
Give it with --key-file to every command that works on the store, from the first mount on.
Keep a copy elsewhere: without it the checkpoints are lost.

Examples:
  ckptfs key new /root/ckpt.key
  ckptfs mount --store /srv/ckpt --key-file /root/ckpt.key /mnt/ckpt`,
		run: func(_ context.Context, _ *console, args []string) error { return store.NewKeyFile(args[0]) },
	}
}
