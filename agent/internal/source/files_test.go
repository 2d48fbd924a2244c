package source

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// watched is a directory under watch and what was last told of it.
type watched struct {
	*testing.T
	dir, keep string
	ch        chan []File
}

func watchDir(t *testing.T, dir string) *watched {
	w := &watched{T: t, dir: dir, keep: filepath.Join(t.TempDir(), "keep"), ch: make(chan []File)}
	w.begin()
	return w
}

func (w *watched) begin() (stop func()) {
	f := &Files{Dir: w.dir, KeepDir: w.keep, Decoder: decoder(w.T), Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan struct{})
	ch := make(chan []File)
	w.ch = ch
	go func() {
		defer close(done)
		f.Run(ctx, ch)
	}()
	stop = func() { cancel(); <-done }
	w.Cleanup(stop)
	return stop
}

// until reads what is told until it is as wanted: "web.yaml=busybox:1 …", with
// "!" after a file that cannot be used.
func (w *watched) until(want string) {
	w.Helper()
	timeout := time.After(5 * time.Minute)
	got := "nothing"
	for {
		select {
		case files := <-w.ch:
			var parts []string
			for _, f := range files {
				s := filepath.Base(f.Path)
				if f.Err != nil {
					s += "!"
				}
				for _, o := range f.Objects {
					if o.Pod != nil {
						s += "=" + o.Pod.Spec.Containers[0].Image
					}
				}
				parts = append(parts, s)
			}
			if got = strings.Join(parts, " "); got == want {
				return
			}
		case <-timeout:
			w.Fatalf("told %q, want %q", got, want)
		}
	}
}

func (w *watched) write(name, content string) {
	w.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o644); err != nil {
		w.Fatal(err)
	}
}

func image(ref string) string { return strings.Replace(container(""), "busybox:1", ref, 1) }

func named(name, manifest string) string {
	return strings.Replace(manifest, "name: web", "name: "+name, 1)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesComeChangeAndGo(t *testing.T) {
	w := watchDir(t, t.TempDir())
	w.until("")
	w.write("b.yaml", image("a:1"))
	w.until("b.yaml=a:1")
	w.write("readme.txt", "no manifest")
	w.write(".hidden.yaml", "no manifest")
	w.write("a.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[{"name":"a","image":"j:1"}]}}`)
	w.until("a.json=j:1 b.yaml=a:1")
	// As editors do: a new file is renamed over the old one.
	w.write(".b.swp", image("a:2"))
	must(t, os.Rename(filepath.Join(w.dir, ".b.swp"), filepath.Join(w.dir, "b.yaml")))
	w.until("a.json=j:1 b.yaml=a:2")
	must(t, os.Remove(filepath.Join(w.dir, "a.json")))
	w.until("b.yaml=a:2")
	must(t, os.RemoveAll(w.dir))
	w.until("")
	must(t, os.Mkdir(w.dir, 0o755))
	w.write("b.yaml", image("a:3"))
	w.until("b.yaml=a:3")
}

func TestDirectoryMadeLater(t *testing.T) {
	w := watchDir(t, filepath.Join(t.TempDir(), "a", "b", "manifests"))
	w.until("")
	must(t, os.MkdirAll(w.dir, 0o755))
	w.write("x.yml", image("a:1"))
	w.until("x.yml=a:1")
}

func TestBrokenEditKeepsWhatWasGood(t *testing.T) {
	w := &watched{T: t, dir: t.TempDir(), keep: filepath.Join(t.TempDir(), "keep")}
	w.write("bad.yaml", "nonsense: [")
	w.write("good.yaml", image("a:1"))
	stop := w.begin()
	w.until("bad.yaml! good.yaml=a:1")
	w.write("good.yaml", "nonsense: [")
	w.until("bad.yaml! good.yaml!=a:1")
	stop()
	w.begin() // the last good version outlives the program, too
	w.until("bad.yaml! good.yaml!=a:1")
	w.write("good.yaml", "") // as it is while it is written anew
	w.until("bad.yaml! good.yaml!=a:1")
	w.write("good.yaml", image("a:2"))
	w.until("bad.yaml! good.yaml=a:2")
	w.write("good.yaml", "")
	w.until("bad.yaml! good.yaml!=a:2")
	w.write("good.yaml", image("a:2"))
	w.until("bad.yaml! good.yaml=a:2")
	must(t, os.Remove(filepath.Join(w.dir, "good.yaml")))
	w.until("bad.yaml!")
	if left, _ := os.ReadDir(w.keep); len(left) != 0 {
		t.Errorf("kept for nothing: %v", left)
	}
}

// The way ConfigMaps are mounted, and how whole directories are swapped.
func TestSymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"v1", "v2"} {
		must(t, os.Mkdir(filepath.Join(dir, v), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, v, "web.yaml"), []byte(image("a:"+v)), 0o644))
	}
	must(t, os.Symlink("v1", filepath.Join(dir, "..data")))
	must(t, os.Mkdir(filepath.Join(dir, "manifests"), 0o755))
	must(t, os.Symlink("../..data/web.yaml", filepath.Join(dir, "manifests", "web.yaml")))
	w := watchDir(t, filepath.Join(dir, "manifests"))
	w.until("web.yaml=a:v1")
	must(t, os.Symlink("v2", filepath.Join(dir, "new")))
	must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "..data")))
	w.until("web.yaml=a:v2")

	link := watchDir(t, filepath.Join(dir, "..data"))
	link.until("web.yaml=a:v2")
	must(t, os.Symlink("v1", filepath.Join(dir, "new")))
	must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "..data")))
	link.until("web.yaml=a:v1")
}

func TestMergeTakesTheFirstDefinition(t *testing.T) {
	decode := func(text string) []Object {
		objects, _, err := decoder(t).Decode([]byte(text))
		must(t, err)
		return objects
	}
	s := Merge([]File{
		{Path: "/m/a.yaml", Objects: decode(image("a:1"))},
		{Path: "/m/b.yaml", Objects: decode(image("a:2"))},
	}, decode(image("a:3")+"---\n"+named("other", image("a:4"))))
	if got := s.Pods["default/web"].Spec.Containers[0].Image; got != "a:1" {
		t.Errorf("image %s", got)
	}
	if len(s.Pods) != 2 || len(s.Problems) != 2 {
		t.Errorf("%d pods, problems %v", len(s.Pods), s.Problems)
	}
	for i, want := range []string{"/m/b.yaml", "api"} {
		if p := s.Problems[i]; p.Source != want || !strings.Contains(p.Message, "already defined by /m/a.yaml") {
			t.Errorf("problem %+v", p)
		}
	}
}

func TestAppliedObjectsComeBack(t *testing.T) {
	d := decoder(t)
	a := &Applied{Dir: filepath.Join(t.TempDir(), "applied"), Decoder: d}
	a.Load()
	objects, _, err := d.Decode([]byte(image("a:1")))
	must(t, err)
	put := func(wantExisted, wantChanged bool) {
		t.Helper()
		existed, changed, err := a.Put(objects[0])
		if err != nil || existed != wantExisted || changed != wantChanged {
			t.Errorf("existed %t, changed %t, %v", existed, changed, err)
		}
	}
	put(false, true)
	put(true, false)
	must(t, os.WriteFile(filepath.Join(a.Dir, "torn.json"), []byte("{"), 0o600))
	if problems := a.Load(); len(problems) != 1 {
		t.Errorf("problems %v", problems)
	}
	put(true, false)
	if w := a.Objects()[0].Warnings; len(w) > 0 {
		t.Errorf("what was kept is warned about: %q", w)
	}
	must(t, a.Delete("Pod default/web"))
	must(t, a.Delete("Pod default/web"))
	if a.Load(); len(a.Objects()) != 0 {
		t.Errorf("still there: %v", a.Objects())
	}
}

// TestOneFile has a file in the place of the directory, as a kubelet may.
func TestOneFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pod")
	w := watchDir(t, path)
	w.until("")
	must(t, os.WriteFile(path, []byte(image("a:1")), 0o644))
	w.until("pod=a:1")
	must(t, os.WriteFile(path+"2", []byte(image("a:2")), 0o644))
	must(t, os.Rename(path+"2", path))
	w.until("pod=a:2")
	must(t, os.Remove(path))
	w.until("")
}

func TestOtherNamesAreNamed(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	f := &Files{Dir: dir, Decoder: decoder(t), Log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, name := range []string{"web.manifest", ".hidden", "web.yaml~", "web.yaml"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(image("a:1")), 0o644))
	}
	for range 2 {
		if files, _ := f.Scan(); len(files) != 1 {
			t.Errorf("%d files", len(files))
		}
	}
	if got := log.String(); strings.Count(got, "is not read") != 1 || !strings.Contains(got, "web.manifest") {
		t.Errorf("the log says\n%s", got)
	}
}
