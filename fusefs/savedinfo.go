package fusefs

import (
	"bytes"
	"fmt"
	"syscall"

	"github.com/ckptfs/ckptfs/store"
)

// infoName is the attachment that images/NAME/info shows with a little more: what the image
// costs is known only after its commit, and whether it was renamed later still.
const infoName = "info"

// infoEnd is how the attachment ends; infoTail takes its place.
const infoEnd = "\n}\n"

// infoTail is as long for true as for false, and whatever memory a template takes: a rename does not change the
// size of a file that somebody has open.
func infoTail(im *store.Image, template int64) []byte {
	return fmt.Appendf(nil, ",\n  \"unique\": %d,\n  \"ratio\": %.2f,\n  \"kept\": %5t,\n  \"template\": %15d\n}\n", im.Unique, im.Ratio(), im.Kept, template)
}

// savedSize returns the size of a file of an image's directory as a reader sees it.
func savedSize(im *store.Image, name string) int64 {
	for _, a := range im.Attachments {
		switch {
		case a.Name != name:
		case name == infoName:
			return a.Size - int64(len(infoEnd)) + int64(len(infoTail(im, 0)))
		default:
			return a.Size
		}
	}
	return im.Size
}

// infoText is images/NAME/info.
func infoText(im *store.Image, attached []byte, template int64) ([]byte, error) {
	head, ok := bytes.CutSuffix(attached, []byte(infoEnd))
	if !ok {
		return nil, failf(syscall.EIO, "info of %s does not end as this program writes it", im.Name)
	}
	return append(head[:len(head):len(head)], infoTail(im, template)...), nil
}
