package main

import (
	"context"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

func showCommand() *command {
	var asJSON, verify bool
	fs := newFlags("show")
	fs.BoolVar(&asJSON, "json", false, "print the whole manifest as JSON")
	fs.BoolVar(&verify, "verify", false, "also read all of it and compare with its hashes")
	return &command{
		name: "show", args: "FILE|-", short: "print what an image holds", flags: fs, nargs: [2]int{1, 1},
		long: `Examples:
  ckptfs show job.ckpt
  ckptfs show --json job.ckpt | jq '.tasks[].comm'
  ckptfs show --verify job.zst`,
		run: func(ctx context.Context, c *console, args []string) error {
			im, err := openImage(c, args[0])
			if err != nil {
				return err
			}
			defer im.Close() // only read: nothing can be lost
			if verify {
				if err := im.verify(ctx, c); err != nil {
					return err
				}
			}
			if asJSON {
				return image.JSON(c.Out, im.Reader)
			}
			return image.Print(c.Out, im.Reader)
		},
	}
}
