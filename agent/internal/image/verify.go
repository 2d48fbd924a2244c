package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubelet "k8s.io/kubelet/config/v1beta1"

	"podstead/sys"
)

// Verify says for which images that are there a pod has to show that it may pull
// them (KEP-2535). The zero value never asks.
type Verify struct {
	Policy kubelet.ImagePullCredentialsVerificationPolicy
	// Allowed are the images that everybody may use under
	// NeverVerifyAllowlistedImages: names without tag; /* at the end for all below.
	Allowed []string
}

// DefaultVerify is the kubelet's: it asks for what this node has pulled.
func DefaultVerify() Verify {
	return Verify{Policy: kubelet.NeverVerifyPreloadedImages}
}

// secretsOfImage bounds the secrets that a record lists (the kubelet's number).
const secretsOfImage = 100

// records says which images this node pulled, and with whose credentials. They
// are files in the kubelet's format: pulled/HASH by image ID, and pulling/HASH by
// name while a pull runs, so that an image whose pull was cut short by a crash is
// not taken for one that was always there.
type records struct {
	dir    string
	policy Verify
	mu     sync.Mutex // of the files
	active map[string]int
}

func (r *records) file(kind, name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(r.dir, kind, "sha256-"+hex.EncodeToString(sum[:]))
}

// off: nobody is ever asked.
func (r *records) off() bool {
	return r.policy.Policy == "" || r.policy.Policy == kubelet.NeverVerify
}

// allow tells whether a pod with these credentials may use an image that is
// there. If not, it may once it has pulled it. After an error the answer is no.
func (r *records) allow(image, id string, keys func() []credential) (bool, error) {
	if r.off() {
		return true, nil
	}
	r.mu.Lock()
	rec, err := r.read(id)
	_, intended := os.Lstat(r.file("pulling", image))
	r.mu.Unlock()
	if err != nil {
		return false, err
	}
	if rec == nil && intended != nil {
		switch r.policy.Policy {
		case kubelet.NeverVerifyPreloadedImages:
			return true, nil
		case kubelet.NeverVerifyAllowlistedImages:
			return r.listed(image), nil
		}
	}
	if rec == nil {
		return false, nil
	}
	from, ok := rec.CredentialMapping[repository(image)]
	if !ok || from.NodePodsAccessible {
		return ok, nil
	}
	for _, k := range keys() {
		if k.Secret == nil {
			continue
		}
		mine := k.record()
		for _, s := range from.KubernetesSecrets {
			same := s.CredentialHash == mine.CredentialHash
			named := s.UID == mine.UID && s.Namespace == mine.Namespace && s.Name == mine.Name
			switch {
			case same && named:
				return true, nil
			case same || named:
				return true, r.add(image, id, k)
			}
		}
	}
	return false, nil
}

// listed tells whether everybody may use an image that this node has not pulled.
func (r *records) listed(image string) bool {
	name := repository(image)
	return slices.ContainsFunc(r.policy.Allowed, func(entry string) bool {
		if below, ok := strings.CutSuffix(entry, "/*"); ok {
			return strings.HasPrefix(name, below+"/")
		}
		return repository(entry) == name
	})
}

// repository is an image's name without tag and digest.
func repository(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return ref.Name()
}

// record is a credential as records show it.
func (k credential) record() kubelet.ImagePullSecret {
	data, err := json.Marshal(k.Auth)
	if err != nil {
		return kubelet.ImagePullSecret{} // not possible: they are strings
	}
	sum := sha256.Sum256(data)
	return kubelet.ImagePullSecret{UID: k.Secret.UID, Namespace: k.Secret.Namespace, Name: k.Secret.Name,
		CredentialHash: hex.EncodeToString(sum[:])}
}

// intend notes that an image is being pulled; done ends that. Where it could not
// be noted who pulled the image, the intent stays instead (keep).
func (r *records) intend(image string) (done func(keep bool), err error) {
	if r.off() {
		return func(bool) {}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	file := r.file("pulling", image)
	if r.active[image] == 0 {
		intent := kubelet.ImagePullIntent{TypeMeta: metav1.TypeMeta{APIVersion: kubelet.SchemeGroupVersion.String(), Kind: "ImagePullIntent"}, Image: image}
		if err := write(file, intent); err != nil {
			return nil, err
		}
	}
	if r.active == nil {
		r.active = map[string]int{}
	}
	r.active[image]++
	return func(keep bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.active[image]--; r.active[image] > 0 {
			return
		}
		delete(r.active, image)
		if !keep {
			os.Remove(file)
		}
	}, nil
}

// add notes that an image was pulled, or could be, with a credential.
func (r *records) add(image, id string, k credential) error {
	if r.off() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, err := r.read(id)
	if err != nil || rec == nil { // a broken one is made anew
		rec = &kubelet.ImagePulledRecord{TypeMeta: metav1.TypeMeta{APIVersion: kubelet.SchemeGroupVersion.String(), Kind: "ImagePulledRecord"}, ImageRef: id}
	}
	if rec.CredentialMapping == nil {
		rec.CredentialMapping = map[string]kubelet.ImagePullCredentials{}
	}
	from := rec.CredentialMapping[repository(image)]
	switch {
	case from.NodePodsAccessible:
		return nil
	case k.Secret == nil:
		from = kubelet.ImagePullCredentials{NodePodsAccessible: true}
	default:
		mine := k.record()
		from.KubernetesSecrets = slices.DeleteFunc(from.KubernetesSecrets, func(s kubelet.ImagePullSecret) bool {
			return s.UID == mine.UID && s.Namespace == mine.Namespace && s.Name == mine.Name
		})
		from.KubernetesSecrets = append(from.KubernetesSecrets, mine)
		if over := len(from.KubernetesSecrets) - secretsOfImage; over > 0 {
			from.KubernetesSecrets = from.KubernetesSecrets[over:]
		}
	}
	rec.CredentialMapping[repository(image)] = from
	rec.LastUpdatedTime = metav1.Now()
	return write(r.file("pulled", id), rec)
}

// read returns the record of an image, nil if there is none.
func (r *records) read(id string) (*kubelet.ImagePulledRecord, error) {
	name := r.file("pulled", id)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rec := &kubelet.ImagePulledRecord{}
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return rec, nil
}

// prune removes the records of images that were not there at a time.
func (r *records) prune(images []*runtimeapi.Image, at time.Time) error {
	there := map[string]bool{}
	for _, i := range images {
		there[filepath.Base(r.file("pulled", i.Id))] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(r.dir, "pulled"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var failed []error
	for _, e := range entries {
		info, err := e.Info()
		if there[e.Name()] || err != nil || !info.ModTime().Before(at) {
			continue
		}
		failed = append(failed, os.Remove(filepath.Join(r.dir, "pulled", e.Name())))
	}
	return errors.Join(append(failed, err)...)
}

func write(name string, what any) error {
	data, err := json.Marshal(what)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return sys.WriteFileAtomic(name, data, 0o600, true)
}
