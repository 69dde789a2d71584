package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/ckptfs/ckptfs/ckpt/image"
	"github.com/ckptfs/ckptfs/ckpt/image/imagetest"
)

func TestPrint(t *testing.T) {
	m := imagetest.Manifest()
	m.Tasks[0].Comm = "evil\x1b[2J"
	m.Segments = append(m.Segments, image.Segment{Memfd: true, Name: "a name", Size: 5 << 30})
	m.Files[0].Segment = 2
	m.Lost[0].What = "a bell \a"
	m.Segments = append(m.Segments, image.Segment{Size: 100, SysV: &image.SysVShm{ID: 9, Key: 18, Made: 18, Size: 100}})
	m.SemSets = []image.SemSet{{Perm: image.IPCPerm{ID: 4, Key: -1}, Sems: make([]image.Semaphore, 3), Undo: []image.SemUndo{{PID: 1000, Adj: 1}}}}
	m.MsgQueues = []image.MsgQueue{{Perm: image.IPCPerm{ID: 5}}}
	r := imagetest.Open(t, imagetest.Bytes(t, m, nil))
	var out bytes.Buffer
	if err := image.Print(&out, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ckptfs image, format 2",
		"taken   2026-09-21 14:13:20.000 UTC by imagetest",
		"root    " + r.Root().String(),
		`  1000 "evil\x1b[2J"  pgid 1000, sid 1000, uid 0, 2 threads, mm 1, fds 1, 1 signal pending`,
		"    1001 child  stopped by signal 19, ",
		"      1002 gone  zombie, wait status 0x300",
		"mm 2: /usr/bin/prog, 5 mappings, ",
		"stored in 4 pieces",
		"       3  file 2 pipe pipe:[77], close-on-exec",
		`file 1: regular "/tmp/not utf-8 \xff", flags 0100002, at 123`,
		"4.9 KiB in blob 1",
		"segment 1: anonymous, 300.0 KiB, 244.0 KiB stored",
		`"lost: pid 1000 fd 0 (terminal): a bell \a;`,
		"memory in segment 2",
		"segment 2: memfd a name, 5.0 GiB, 0 B stored",
		"segment 3: SysV shared memory 9, key 0x12, 100 B, 0 B stored",
		"semaphore set 4, key 0xffffffff, 3 semaphores, 1 adjustment",
		"message queue 5, key 0x0, 0 messages",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.ContainsRune(out.String(), 0x1b) {
		t.Error("an escape sequence came through")
	}
}

func TestJSON(t *testing.T) {
	m := imagetest.Manifest()
	m.Files[1].Rec = []byte{0xa2, 0x01, 0x43, 'a', 'b', 'c', 0x02, 0x84, 0xf5, 0x41, 0xff, 0x20, 0x61, 'x'} // {1: 'abc', 2: [true, h'ff', -1, "x"]}
	r := imagetest.Open(t, imagetest.Bytes(t, m, nil))
	var out bytes.Buffer
	if err := image.JSON(&out, r); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Image struct {
			Size int64
			Root string
		}
		Manifest struct {
			Tasks []struct{ PID int }
			Files []struct {
				Kind string
				Rec  map[string]any
			}
			MMs []struct{ VMAs []map[string]any }
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	rec := map[string]any{"1": "abc", "2": []any{true, "/w==", -1.0, "x"}}
	if got.Image.Size != r.Layout.Total || got.Image.Root != r.Root().String() || len(got.Manifest.Tasks) != 3 || got.Manifest.Tasks[1].PID != 1001 ||
		got.Manifest.Files[1].Kind != "pipe" || !reflect.DeepEqual(got.Manifest.Files[1].Rec, rec) || got.Manifest.MMs[0].VMAs[1]["name"] != "[heap]" {
		t.Errorf("%+v", got)
	}
}

// fullWriter fails as a full disk does.
type fullWriter struct{}

var errFull = errors.New("no space left on device")

func (fullWriter) Write([]byte) (int, error) { return 0, errFull }

func TestPrintErrors(t *testing.T) {
	r := imagetest.Open(t, imagetest.Bytes(t, imagetest.Manifest(), nil))
	if err := image.Print(fullWriter{}, r); !errors.Is(err, errFull) {
		t.Errorf("Print: %v", err)
	}
	if err := image.JSON(fullWriter{}, r); !errors.Is(err, errFull) {
		t.Errorf("JSON: %v", err)
	}
}
