package fusefs

import (
	"testing"
	"time"

	"github.com/ckptfs/ckptfs/store"
)

func TestCollector(t *testing.T) {
	quit := make(chan struct{})
	c := newCollector(store.Policy{KeepLast: 1}, quit)
	if c.keep.Spare("a") || c.takeDead() {
		t.Error("a new collector knows of something")
	}
	opened := c.opening("a")
	if !c.keep.Spare("a") || c.keep.Spare("b") {
		t.Error("an image that is about to be opened is not spared, or another one is")
	}
	opened()
	if c.keep.Spare("a") {
		t.Error("an image is spared for ever")
	}
	c.look()
	if c.look(); c.takeDead() {
		t.Error("a new image is no garbage")
	}
	c.noRoom()
	if !c.wait(time.Hour) {
		t.Error("a full disk ends the mount")
	}
	<-c.poked
	if !c.takeDead() || c.takeDead() {
		t.Error("garbage is forgotten, or not forgotten")
	}
	c.keepDead()
	if !c.takeDead() {
		t.Error("garbage that could not be freed is forgotten")
	}
	close(quit)
	if c.wait(time.Hour) {
		t.Error("goes on after the end of the mount")
	}
}

func TestInfoText(t *testing.T) {
	im := store.Image{Name: "a", Size: 300, Unique: 100, Attachments: []store.Attachment{{Name: "info", Size: 13}, {Name: "log", Size: 7}}}
	b, err := infoText(&im, []byte("{\n  \"a\": 1\n}\n"), 0)
	if want := "{\n  \"a\": 1,\n  \"unique\": 100,\n  \"ratio\": 3.00,\n  \"kept\": false,\n  \"template\":               0\n}\n"; err != nil || string(b) != want {
		t.Errorf("%q, %v", b, err)
	}
	im.Kept = true
	if c, err := infoText(&im, []byte("{\n  \"a\": 1\n}\n"), 1<<40); err != nil || len(c) != len(b) || int64(len(c)) != savedSize(&im, "info") {
		t.Errorf("%q, %v: want %d bytes, as it was before the rename", c, err, savedSize(&im, "info"))
	}
	if _, err := infoText(&im, []byte("{}"), 0); err == nil {
		t.Error("takes what it did not write")
	}
	if savedSize(&im, "log") != 7 || savedSize(&im, "image") != 300 {
		t.Error("sizes of other files")
	}
}
