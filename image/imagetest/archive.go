package imagetest

import (
	"archive/tar"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Archive writes the image as an OCI archive that has the given names, and
// returns the file's path, below the test's own directory.
func Archive(t testing.TB, img Image, names ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, ArchiveBytes(t, img, names...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ArchiveBytes is an OCI archive of the image.
func ArchiveBytes(t testing.TB, img Image, names ...string) []byte {
	t.Helper()
	manifests := []any{}
	if len(names) == 0 {
		manifests = append(manifests, Descriptor(img.Manifest))
	}
	for _, n := range names {
		d := Descriptor(img.Manifest)
		d["annotations"] = map[string]string{"io.containerd.image.name": n}
		manifests = append(manifests, d)
	}
	files := []File{
		{Name: "oci-layout", Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{Name: "index.json", Data: marshal(t, map[string]any{"schemaVersion": 2, "manifests": manifests})},
	}
	return Tar(t, append(files, blobFiles(img)...)...)
}

func blobFiles(img Image) []File {
	blobs := map[string]File{}
	for _, b := range append([]Blob{img.Manifest, img.Config}, img.Layers...) {
		name := "blobs/sha256/" + strings.TrimPrefix(b.Digest(), "sha256:")
		blobs[name] = File{Name: name, Data: b.Data}
	}
	var files []File
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		files = append(files, blobs[name])
	}
	return files
}

// DockerArchiveBytes is an archive in the form of "docker save" before it knew
// OCI: uncompressed layers in directories, of which repeated ones are links.
func DockerArchiveBytes(t testing.TB, cfg Config, layers [][]byte, names ...string) []byte {
	t.Helper()
	var paths, diffIDs []string
	var files []File
	seen := map[string]string{}
	for i, l := range layers {
		d := Digest(l)
		diffIDs = append(diffIDs, d)
		p := strings.Repeat(string(rune('a'+i)), 64) + "/layer.tar"
		paths = append(paths, p)
		if first, ok := seen[d]; ok {
			files = append(files, File{Name: p, Link: "../" + first, Type: tar.TypeSymlink})
			continue
		}
		seen[d] = p
		files = append(files, File{Name: p, Data: l})
	}
	config := marshal(t, cfg.spec(diffIDs))
	configName := strings.TrimPrefix(Digest(config), "sha256:") + ".json"
	manifest := marshal(t, []any{map[string]any{"Config": configName, "RepoTags": names, "Layers": paths}})
	return Tar(t, append(files, File{Name: configName, Data: config}, File{Name: "manifest.json", Data: manifest})...)
}
