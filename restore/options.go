package restore

import (
	"time"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/policy"
	"github.com/ckptfs/ckptfs/ckpt/steplog"
	"github.com/ckptfs/ckptfs/restore/lazy"
)

// Options say how to restore.
type Options struct {
	// OutPath is the file that takes what the processes write to terminals and pipes whose
	// other end is gone. It is made when it is needed; with "" such output is discarded.
	OutPath string
	// Policy has the policies that are to count instead of those of the image.
	Policy policy.Set
	// Timeout bounds the whole restore, beside a second for each 32 MiB of memory that is to
	// be copied from the image; 0 is DefaultTimeout.
	Timeout time.Duration
	// CallerUID is the user that asks: he gets only processes of his own, without
	// privileges. 0 and -1: no limit.
	CallerUID int
	// Lazy lets the processes run before their memory has come; nil: all of it is there when they
	// run. The image need not have been verified if it comes from image.OpenChecked.
	Lazy *lazy.Source
	// Stopped leaves every process stopped, as by SIGSTOP.
	Stopped bool
	// Log gets a line about each stage; nil: nobody.
	Log func(string)
	// Steps gets a line about each step; may be nil.
	Steps *steplog.Log
	// Template holds memory of the image ready, if it is one of it; may be nil.
	Template *Template
}

// Result tells what a restore has made.
type Result struct {
	Root     int             // pid of the root process
	PIDs     []int           // of all processes, in the order of the image
	Warnings []string        // what is not quite as it was
	Lost     []image.Finding // what the checkpoint could not keep
	Lazy     uint64          // bytes of memory that come later

	PageServer int   // pid of the process that brings them
	Shared     int64 // bytes of memory that are shared with the template
}
