package kind

import (
	"slices"

	"github.com/ckptfs/ckptfs/ckpt/image"
)

// All lists every kind of open file, in the order in which explain and show name them.
func All() []Kind { return slices.Clone(all) }

var (
	all = []Kind{
		regular{},
		directory{},
		pathOnly{},
		pipe{},
		fifo{},
		eventFD{},
		signalFD{},
		timerFD{},
		epoll{},
		memFD{},
		charDev{},
		terminal{},
		pidFD{},
		inotify{},
		fanotify{},
		procFile{},
		unixSock{},
		inetSock{},
		netlinkSock{},
		packetSock{},
		mqueue{},
		ptyKind{},
		uring{},
	}
	byName = map[string]Kind{}
)

func init() {
	for _, k := range all {
		byName[k.Name()] = k
	}
}

// ByName returns the kind with that tag, or nil if this version does not know it.
func ByName(name string) Kind {
	if k, ok := byName[name]; ok {
		return k
	}
	return nil
}

// Find returns the kind that f is of, or nil; then Unsupported has the sentence.
func Find(f *Found) Kind {
	for _, k := range all {
		if k.Match(f) {
			return k
		}
	}
	return nil
}

// Refuse and Lose findings of f are made by these two, so that every sentence has the same shape.

func (f *Found) refuse(what, remedy string) image.Finding {
	return f.Finding(image.Refuse, f.Link, what, remedy)
}

func (f *Found) lose(what, remedy string) image.Finding {
	return f.Finding(image.Lose, f.Link, what, remedy)
}
