package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestCountsGoOn watches a container anew with what is in a book, as after the
// agent was killed.
func TestCountsGoOn(t *testing.T) {
	const period = 10
	for _, c := range []struct {
		what   string
		script string // of probes: / is the agent's end, . a second without it
		spec   corev1.Container
		want   string // started, ready, failed
		at     time.Duration
	}{
		{"the third failure, when it is due", "--/-", corev1.Container{LivenessProbe: probe(0, period, 1, 3)}, "true false failed", 30 * time.Second},
		{"after longer than a period", "--/" + strings.Repeat(".", 17) + "-", corev1.Container{LivenessProbe: probe(0, period, 1, 3)}, "true false failed", 40 * time.Second},
		{"a success between", "--/+--", corev1.Container{LivenessProbe: probe(0, period, 1, 3)}, "true true ", 50 * time.Second},
		{"it was about to be killed", "---/", corev1.Container{LivenessProbe: probe(0, period, 1, 3)}, "true false failed", 0},
		{"startup", "--/-", corev1.Container{StartupProbe: probe(0, period, 1, 3)}, "false false failed", 20 * time.Second},
		{"startup had succeeded", "+/", corev1.Container{StartupProbe: probe(0, period, 1, 3)}, "true true ", 0},
		{"readiness had succeeded", "+/", corev1.Container{ReadinessProbe: probe(0, period, 1, 3)}, "true true ", 0},
		{"the second of two successes", "+/+", corev1.Container{ReadinessProbe: probe(0, period, 2, 3)}, "true true ", 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "counts")
			before, after, _ := strings.Cut(c.script, "/")
			s := &subject{script: before + "e", began: time.Now()}
			watch := func(carry *State) (*Container, *Book) {
				b := OpenBook(path)
				spec := c.spec
				spec.Name = "app"
				return Watch(t.Context(), Config{ID: "c1", Spec: &spec, StartedAt: s.began, Carry: carry, Changed: func() {},
					Target: Target{Spec: &spec, Exec: s.exec}, Failure: func(string) {}, Counts: b.Of("c1"),
					Keep: func(kind string, n Count) {
						if err := b.Keep("c1", kind, n); err != nil {
							t.Error(err)
						}
					}}), b
			}
			w, _ := watch(nil)
			for len(s.at) < len(before) {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			w.Stop()
			gone := len(after) - len(strings.TrimLeft(after, "."))
			time.Sleep(time.Duration(gone) * time.Second)
			s.script = after[gone:]
			s.at = nil
			w, b := watch(&State{Started: c.spec.StartupProbe == nil})
			for len(s.at) < len(after)-gone {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			synctest.Wait()
			st := w.State()
			w.Stop()
			text := "false "
			if st.Started {
				text = "true "
			}
			if st.Ready {
				text += "true "
			} else {
				text += "false "
			}
			if st.Failed != "" {
				text += "failed"
			}
			if text != c.want {
				t.Errorf("%s: %q, want %q", c.what, text, c.want)
			}
			if n := len(s.at); n > 0 && s.at[n-1] != c.at {
				t.Errorf("%s: the last probe at %v, want %v", c.what, s.at[n-1], c.at)
			}
			if err := b.Only(nil); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s: a book of no container", c.what)
			}
		})
	}
}

// TestStaleCounts looks at counts that say nothing: of another definition, of
// another instance, from a broken file, of the future.
func TestStaleCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counts")
	p, other := probe(0, 10, 1, 3), probe(0, 10, 1, 2)
	b := OpenBook(path)
	var n Count
	writes := 0
	for _, ok := range []bool{true, true, true, false, false, false, false, false} {
		if n.add(p, ok, time.Now()) {
			writes++
			if err := b.Keep("c1", Liveness, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	if writes != 4 || n.N != 3 {
		t.Errorf("%d writes, count %d; want a success and three failures", writes, n.N)
	}
	if got := OpenBook(path).Of("c1")[Liveness]; got.N != 3 || got.OK || got.Probe != name(p) || got.Probe == name(other) {
		t.Errorf("read: %+v", got)
	}
	if got := OpenBook(path).Of("c2"); len(got) != 0 {
		t.Errorf("of another container: %v", got)
	}
	if _, known := n.next(n.At.Add(-time.Second), 10*time.Second); known {
		t.Error("due by a clock that was set back")
	}
	for _, text := range []string{"", "{", "null", `{"c1": null}`, "[1]"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b := OpenBook(path)
		if got := b.Of("c1"); len(got) != 0 {
			t.Errorf("%q: %v", text, got)
		}
		if err := b.Keep("c1", Liveness, n); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	spec := corev1.Container{Name: "app", LivenessProbe: other}
	w := Watch(t.Context(), Config{ID: "c1", Spec: &spec, StartedAt: time.Now(), Carry: &State{}, Changed: func() {}, Counts: OpenBook(path).Of("c1")})
	if st := w.State(); st.Failed != "" {
		t.Errorf("an edited probe: %+v", st)
	}
	w.Stop()
}
