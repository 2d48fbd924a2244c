package image

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// Nothing that a registry may answer makes the parsers panic, and what they
// accept is safe to use as file names.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":3},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}`),
		[]byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux","architecture":"arm","variant":"v7"}},{"platform":null},{}]}`), []byte(`{}`))
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		doc, err := parseDocument(manifest, "application/json")
		if err != nil {
			return
		}
		if doc.Manifests != nil {
			choose(doc.Manifests)
			return
		}
		if checkManifest(doc) != nil {
			return
		}
		for _, l := range doc.Layers {
			if filepath.Dir(blobPath(string(l.Digest))) != "blobs/sha256" || len(l.Digest) != 71 {
				t.Errorf("accepted digest %q", l.Digest)
			}
		}
		if c, err := checkConfig(config, len(doc.Layers)); err == nil {
			for _, chain := range chainIDs(c.RootFS.DiffIDs) {
				if validDigest(chain) != nil {
					t.Errorf("chain ID %q", chain)
				}
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	path := filepath.Join(f.TempDir(), "r")
	if err := writeRecord(path, &record{ID: "sha256:x", Tags: []string{"a"}}, false); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "r")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var r record
		if readRecord(path, &r) == nil {
			if _, err := json.Marshal(&r); err != nil {
				t.Error(err)
			}
		}
	})
}
