package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubelet "k8s.io/kubelet/config/v1beta1"
)

// pullSecret has a user's credential for quay.io.
func pullSecret(name, user string) *corev1.Secret {
	s := secret(`{"auths": {"quay.io": {"username": "` + user + `", "password": "x"}}}`)
	s.ObjectMeta = metav1.ObjectMeta{Namespace: "default", Name: name}
	return s
}

// TestVerify follows one image from pod to pod.
func TestVerify(t *testing.T) {
	type use struct {
		pod    string
		secret *corev1.Secret
		policy corev1.PullPolicy
		denied bool // by the registry
		pulls  int
		reason string // "": the pod gets it
	}
	mine, copied, changed := pullSecret("mine", "me"), pullSecret("copied", "me"), pullSecret("mine", "changed")
	other := pullSecret("other", "somebody")
	const ask, never, present = kubelet.NeverVerifyPreloadedImages, corev1.PullNever, corev1.PullIfNotPresent
	for _, c := range []struct {
		name   string
		verify Verify
		there  bool // before the first pod
		uses   []use
	}{
		{"preloaded", Verify{Policy: ask}, true, []use{{"first", nil, never, true, 0, ""}}},
		{"preloaded, asked for all the same", Verify{Policy: kubelet.AlwaysVerify}, true, []use{
			{"without", nil, present, true, 1, ErrImagePull}, {"owner", mine, present, false, 1, ""}, {"again", mine, present, true, 0, ""}}},
		{"preloaded, not listed", Verify{kubelet.NeverVerifyAllowlistedImages, []string{"quay.io/other/*", "quay.io/team"}}, true, []use{
			{"first", nil, present, true, 1, ErrImagePull}}},
		{"preloaded, listed", Verify{kubelet.NeverVerifyAllowlistedImages, []string{"quay.io/team/*"}}, true, []use{{"first", nil, present, true, 0, ""}}},
		{"pulled, nobody is asked", Verify{Policy: kubelet.NeverVerify}, false, []use{
			{"owner", mine, present, false, 1, ""}, {"without", nil, present, true, 0, ""}}},
		{"pulled with a secret", Verify{Policy: ask}, false, []use{
			{"owner", mine, present, false, 1, ""},
			{"owner again", mine, present, true, 0, ""},
			{"without", nil, present, true, 1, ErrImagePull},
			{"without, never to be pulled", nil, never, true, 0, ErrImageNeverPull},
			{"the same credential", copied, never, true, 0, ""},
			{"somebody else's", other, present, true, 1, ErrImagePull},
			{"somebody else's, good too", other, present, false, 1, ""},
			{"and noted", other, never, true, 0, ""},
			{"the secret has changed", changed, never, true, 0, ""},
		}},
		{"pulled by all", Verify{Policy: ask}, false, []use{
			{"owner", mine, present, false, 1, ""},
			{"without", nil, present, false, 1, ""},
			{"without, again", nil, never, true, 0, ""},
			{"with any", other, never, true, 0, ""},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const image = "quay.io/team/x:1"
				svc := &images{have: map[string]bool{image: c.there}}
				dir := t.TempDir()
				for _, u := range c.uses {
					p := New(Config{Images: svc, Verify: c.verify, Dir: dir}) // the agent is new each time
					svc.pulls, svc.failed = 0, nil
					if u.denied {
						svc.failed = errors.New("denied")
					}
					r := request(image, u.policy)
					if u.secret != nil {
						r.Secrets = []*corev1.Secret{u.secret}
					}
					_, err := p.Ensure(t.Context(), r)
					reason := ""
					var e *Error
					if errors.As(err, &e) {
						reason = e.Reason
					}
					if reason != u.reason || svc.pulls != u.pulls {
						t.Errorf("%s: %v, %d pulls, want %q, %d", u.pod, err, svc.pulls, u.reason, u.pulls)
					}
				}
				if left, _ := os.ReadDir(filepath.Join(dir, "pulling")); len(left) > 0 {
					t.Errorf("intents are left: %v", left)
				}
			})
		})
	}
}

// TestPullCutShort: an agent that was killed while it pulled does not know
// whose the image is.
func TestPullCutShort(t *testing.T) {
	const image = "quay.io/team/x:1"
	dir := t.TempDir()
	r := &records{dir: dir, policy: DefaultVerify()}
	if _, err := r.intend(image); err != nil {
		t.Fatal(err)
	}
	r = &records{dir: dir, policy: DefaultVerify()}
	if ok, err := r.allow(image, "id", nil); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

func TestBrokenRecord(t *testing.T) {
	r := &records{dir: t.TempDir(), policy: DefaultVerify()}
	k := credential{}
	if err := r.add("a:1", "id", k); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.file("pulled", "id"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, err := r.allow("a:1", "id", nil); ok || err == nil {
		t.Errorf("%v, %v", ok, err)
	}
	if err := r.add("a:1", "id", k); err != nil {
		t.Error(err)
	}
	if ok, err := r.allow("a:1", "id", nil); !ok || err != nil {
		t.Errorf("after the next pull: %v, %v", ok, err)
	}
}

func TestRecordsOfImagesThatAreGone(t *testing.T) {
	r := &records{dir: t.TempDir(), policy: DefaultVerify()}
	for _, id := range []string{"gone", "here"} {
		if err := r.add("a:1", id, credential{}); err != nil {
			t.Fatal(err)
		}
	}
	svc := &images{have: map[string]bool{"here": true}}
	list, _ := svc.ListImages(t.Context(), nil)
	if err := r.prune(list.Images, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"gone": false, "here": true} {
		if rec, err := r.read(id); (rec != nil) != want || err != nil {
			t.Errorf("%s: %v, %v", id, rec, err)
		}
	}
}
