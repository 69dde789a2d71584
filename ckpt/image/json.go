package image

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// summary is what JSON says of the file itself.
type summary struct {
	Version int    `json:"version"`
	Size    int64  `json:"size"`
	Head    int64  `json:"head"`
	Data    int64  `json:"data"`
	Trailer int64  `json:"trailer"`
	Chunks  int    `json:"chunks"`
	Root    string `json:"root"`
}

// jsonFile is a File whose record is shown as what it holds. The outer rec hides the inner.
type jsonFile struct {
	*File
	Rec any `json:"rec,omitempty"`
}

// jsonManifest is a Manifest with such files.
type jsonManifest struct {
	*Manifest
	Files []jsonFile `json:"files"`
}

// JSON writes everything but the data as one JSON object: "image" tells of the file itself,
// "manifest" has the fields of Manifest. Bytes are in base64. Strings that are not UTF-8 come
// out with replacement characters: JSON has no bytes.
func JSON(w io.Writer, r *Reader) error {
	m := jsonManifest{Manifest: r.Manifest, Files: make([]jsonFile, len(r.Manifest.Files))}
	for i := range r.Manifest.Files {
		f := &r.Manifest.Files[i]
		rec, err := record(f.Rec)
		if err != nil {
			return fmt.Errorf("files[%d].rec: %w", i, err)
		}
		m.Files[i] = jsonFile{File: f, Rec: rec}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Image    summary      `json:"image"`
		Manifest jsonManifest `json:"manifest"`
	}{newSummary(r), m})
}

// newSummary is the summary of an image.
func newSummary(r *Reader) summary {
	l := r.Layout
	return summary{Version: Version, Size: l.Total, Head: l.HeadLen, Data: l.DataLen, Trailer: l.TrailerLen, Chunks: len(l.Chunks), Root: r.root.String()}
}

// record decodes the record of a kind into what encoding/json can show.
func record(rec cbor.RawMessage) (any, error) {
	if len(rec) == 0 {
		return nil, nil
	}
	var v any
	if err := unmarshal(rec, &v); err != nil {
		return nil, bad("", "does not decode: %v", err)
	}
	return jsonable(v), nil
}

// jsonable turns the keys of maps, which are field numbers, into strings, and byte strings
// that are text into strings.
func jsonable(v any) any {
	switch v := v.(type) {
	case map[any]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[fmt.Sprint(k)] = jsonable(e)
		}
		return out
	case []any:
		for i := range v {
			v[i] = jsonable(v[i])
		}
		return v
	case []byte:
		if s := string(v); printable(s) {
			return s
		}
	}
	return v
}
