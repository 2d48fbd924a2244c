package image

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// credential is one that a pull may try. Without a secret it is the node's own,
// for all pods; the zero value is none at all.
type credential struct {
	// Auth names no server, as the kubelet's: runtimes compare that with the host
	// that they ask, which may be another name of the registry, or a mirror.
	Auth   *runtimeapi.AuthConfig
	Secret *secretName
	entry  string // that it was found under
}

// secretName is where a credential is from.
type secretName struct{ Namespace, Name, UID string }

// dockerConfig is the content of a pull secret, by registry.
type dockerConfig map[string]dockerEntry

type dockerEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// auth is what the runtime is given; ok is false for an entry without content,
// as docker login leaves it where a helper of its own keeps the password.
func (e dockerEntry) auth() (a *runtimeapi.AuthConfig, ok bool) {
	a = &runtimeapi.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if a.Username == "" && e.Auth != "" {
		if plain, err := base64.StdEncoding.DecodeString(e.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(string(plain), ":")
		}
	}
	return a, a.Username != "" || a.Password != "" || a.IdentityToken != "" || a.RegistryToken != ""
}

// credentials collects what there is for an image; each is tried until one is
// accepted. The pod's secrets come first, then the node's plugins, then its
// files; of each the most specific entry.
func (p *Puller) credentials(ctx context.Context, image string, secrets []*corev1.Secret) []credential {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil
	}
	out := fromSecrets(ref, secrets)
	for _, provider := range p.cfg.Providers {
		entries, err := provider.lookup(ctx, ref)
		if err != nil {
			p.cfg.Log.Error("no credentials for an image", "image", image, "provider", provider.name, "error", err)
		}
		out = append(out, matching(ref, entries, nil)...)
	}
	for _, file := range p.cfg.DockerConfigs {
		entries, err := readDockerConfig(file)
		if err != nil {
			p.cfg.Log.Error("no credentials for an image", "image", image, "error", err)
		}
		out = append(out, matching(ref, entries, nil)...)
	}
	return out
}

func fromSecrets(ref reference.Named, secrets []*corev1.Secret) []credential {
	var out []credential
	for _, s := range secrets {
		from := &secretName{s.Namespace, s.Name, string(s.UID)}
		out = append(out, matching(ref, parseSecret(s), from)...)
	}
	slices.SortStableFunc(out, bySpecificity)
	return out
}

// matching are the entries for an image, the most specific first.
func matching(ref reference.Named, entries dockerConfig, from *secretName) []credential {
	var out []credential
	for registry, e := range entries {
		if auth, ok := e.auth(); ok && matches(registry, ref) {
			out = append(out, credential{auth, from, registry})
		}
	}
	slices.SortFunc(out, bySpecificity)
	return out
}

func bySpecificity(a, b credential) int {
	return cmp.Or(specificity(b.entry)-specificity(a.entry), strings.Compare(a.entry, b.entry))
}

// specificity is higher for a longer entry; a wildcard is worth less than a label.
func specificity(entry string) int {
	host, dir := split(entry)
	return 2*(len(host)+len(dir)) - strings.Count(host, "*")
}

func parseSecret(s *corev1.Secret) dockerConfig {
	if data, ok := s.Data[corev1.DockerConfigJsonKey]; ok {
		if auths, err := parseDockerConfig(data); err == nil {
			return auths
		}
	}
	if data, ok := s.Data[corev1.DockerConfigKey]; ok {
		var old dockerConfig
		if json.Unmarshal(data, &old) == nil {
			return old
		}
	}
	return nil
}

func parseDockerConfig(data []byte) (dockerConfig, error) {
	var file struct {
		Auths dockerConfig `json:"auths"`
	}
	err := json.Unmarshal(data, &file)
	return file.Auths, err
}

// readDockerConfig reads a config.json; one that is not there is empty.
func readDockerConfig(name string) (dockerConfig, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	auths, err := parseDockerConfig(data)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return auths, nil
}

// split takes an entry ("https://index.docker.io/v1/", "*.example.com",
// "host:5000/team") apart.
func split(entry string) (host, dir string) {
	entry = strings.TrimPrefix(strings.TrimPrefix(entry, "https://"), "http://")
	host, dir, _ = strings.Cut(strings.TrimSuffix(entry, "/"), "/")
	if dir == "v1" || dir == "v2" {
		dir = ""
	}
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	return host, dir
}

// matches tells whether an entry is for an image: the same host, where a * stands
// for a part of one label, the same port, and a path that leads to the image.
func matches(entry string, ref reference.Named) bool {
	host, dir := split(entry)
	if dir != "" && reference.Path(ref) != dir && !strings.HasPrefix(reference.Path(ref), dir+"/") {
		return false
	}
	pattern, port, _ := strings.Cut(host, ":")
	domain, domainPort, _ := strings.Cut(reference.Domain(ref), ":")
	want, have := strings.Split(pattern, "."), strings.Split(domain, ".")
	if port != domainPort || len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
