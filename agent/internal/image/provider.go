package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubelet "k8s.io/kubelet/config/v1"
	plugin "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	pluginTimeout = time.Minute // the kubelet's
	pluginAnswer  = 1 << 20     // bytes of output that are read
)

// Provider is a credential provider: a program that the kubelet's contract
// describes (KEP-2133, credentialprovider.kubelet.k8s.io). What it said is kept
// in memory for as long as it allows.
type Provider struct {
	name, path, version string
	args, env           []string
	match               []string
	keep                time.Duration

	calls   singleflight.Group // by image
	mu      sync.Mutex
	answers map[string]answer // by image, registry or "" for all
}

// answer is what a provider said, and until when it holds.
type answer struct {
	auths dockerConfig
	until time.Time
}

// ReadProviders reads a CredentialProviderConfig (kubelet.config.k8s.io), or all
// those of a directory in the order of their names. The programs are in bin.
// Errors name the file and the field.
func ReadProviders(config, bin string) ([]*Provider, error) {
	files := []string{config}
	if st, err := os.Stat(config); err != nil {
		return nil, err
	} else if st.IsDir() {
		entries, err := os.ReadDir(config)
		if err != nil {
			return nil, err
		}
		files = nil
		for _, e := range entries { // sorted
			if slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(e.Name())) && !e.IsDir() {
				files = append(files, filepath.Join(config, e.Name()))
			}
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("%s: there is no *.json, *.yaml or *.yml in it", config)
		}
	}
	var out []*Provider
	for _, name := range files {
		more, err := readProviders(name, bin)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, p := range more {
			if slices.ContainsFunc(out, func(o *Provider) bool { return o.name == p.name }) {
				return nil, fmt.Errorf("%s: providers: %q is there twice", name, p.name)
			}
			out = append(out, p)
		}
	}
	return out, nil
}

func readProviders(name, bin string) (out []*Provider, err error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	var c kubelet.CredentialProviderConfig
	strict, err := kjson.UnmarshalStrict(text, &c)
	if err = errors.Join(append(strict, err)...); err != nil {
		return nil, err
	}
	group, version, _ := strings.Cut(c.APIVersion, "/")
	if c.Kind != "CredentialProviderConfig" || group != kubelet.GroupName || !knownVersion(version) {
		return nil, fmt.Errorf("it is %q of %q, want CredentialProviderConfig of %s/v1", c.Kind, c.APIVersion, kubelet.GroupName)
	}
	if len(c.Providers) == 0 {
		return nil, errors.New("providers: there is none")
	}
	for i := range c.Providers {
		p, err := newProvider(&c.Providers[i], bin)
		if err != nil {
			return nil, fmt.Errorf("providers[%d].%w", i, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// knownVersion: they differ in name only.
func knownVersion(v string) bool { return v == "v1" || v == "v1beta1" || v == "v1alpha1" }

func newProvider(c *kubelet.CredentialProvider, bin string) (*Provider, error) {
	group, version, _ := strings.Cut(c.APIVersion, "/")
	switch {
	case c.Name == "" || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/ "):
		return nil, fmt.Errorf("name: %q is no name of a program", c.Name)
	case len(c.MatchImages) == 0:
		return nil, errors.New("matchImages: there is none")
	case c.DefaultCacheDuration == nil:
		return nil, errors.New("defaultCacheDuration: it is missing")
	case c.DefaultCacheDuration.Duration < 0:
		return nil, fmt.Errorf("defaultCacheDuration: %s is negative", c.DefaultCacheDuration.Duration)
	case group != plugin.GroupName || !knownVersion(version):
		return nil, fmt.Errorf("apiVersion: %q is not %s/v1", c.APIVersion, plugin.GroupName)
	case c.TokenAttributes != nil:
		return nil, errors.New("tokenAttributes: there are no tokens of service accounts without an API server")
	}
	for i, m := range c.MatchImages {
		if _, err := filepath.Match(m, ""); err != nil || m == "" {
			return nil, fmt.Errorf("matchImages[%d]: %q is no pattern", i, m)
		}
	}
	p := &Provider{name: c.Name, path: filepath.Join(bin, c.Name), version: c.APIVersion, args: c.Args,
		match: c.MatchImages, keep: c.DefaultCacheDuration.Duration,
		answers: map[string]answer{}}
	if err := unix.Access(p.path, unix.X_OK); err != nil {
		return nil, fmt.Errorf("name: %s: %w", p.path, err)
	}
	for _, e := range c.Env {
		p.env = append(p.env, e.Name+"="+e.Value)
	}
	return p, nil
}

// lookup asks for the credentials of an image, if the provider is for it.
func (p *Provider) lookup(ctx context.Context, ref reference.Named) (dockerConfig, error) {
	if !slices.ContainsFunc(p.match, func(m string) bool { return matches(m, ref) }) {
		return nil, nil
	}
	image := ref.Name()
	p.mu.Lock()
	for _, key := range []string{image, reference.Domain(ref), ""} {
		if a, ok := p.answers[key]; ok && time.Now().Before(a.until) {
			p.mu.Unlock()
			return a.auths, nil
		}
	}
	p.mu.Unlock()
	call := p.calls.DoChan(image, func() (any, error) { return p.ask(context.WithoutCancel(ctx), ref) })
	select {
	case got := <-call:
		auths, _ := got.Val.(dockerConfig)
		return auths, got.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ask runs the program for an image and keeps what it says.
func (p *Provider) ask(ctx context.Context, ref reference.Named) (dockerConfig, error) {
	resp, err := p.exec(ctx, ref.Name())
	if err != nil {
		return nil, err
	}
	var key string
	switch resp.CacheKeyType {
	case plugin.ImagePluginCacheKeyType:
		key = ref.Name()
	case plugin.RegistryPluginCacheKeyType:
		key = reference.Domain(ref)
	case plugin.GlobalPluginCacheKeyType:
	default:
		return nil, fmt.Errorf("%s: cacheKeyType: %q is not Image, Registry or Global", p.path, resp.CacheKeyType)
	}
	auths := dockerConfig{}
	for registry, a := range resp.Auth {
		auths[registry] = dockerEntry{Username: a.Username, Password: a.Password}
	}
	keep := p.keep
	if resp.CacheDuration != nil {
		keep = resp.CacheDuration.Duration
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(p.answers, func(_ string, a answer) bool { return !now.Before(a.until) })
	if keep > 0 {
		p.answers[key] = answer{auths, now.Add(keep)}
	}
	return auths, nil
}

// exec runs the program: the request on stdin, the response on stdout.
func (p *Provider) exec(ctx context.Context, image string) (*plugin.CredentialProviderResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	request, err := json.Marshal(plugin.CredentialProviderRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: p.version, Kind: "CredentialProviderRequest"}, Image: image,
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	out, said := &bounded{max: pluginAnswer}, &bounded{max: 4096}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), out, said
	cmd.Env = append(os.Environ(), p.env...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // what it started may hold its output open
	if err := cmd.Run(); err != nil {
		why := cmp.Or(context.Cause(ctx), err)
		return nil, fmt.Errorf("%s: %w: %s", p.path, why, bytes.TrimSpace(said.data))
	}
	resp := &plugin.CredentialProviderResponse{}
	switch err := json.Unmarshal(out.data, resp); {
	case out.cut:
		return nil, fmt.Errorf("%s: its answer is longer than %d bytes", p.path, pluginAnswer)
	case err != nil:
		return nil, fmt.Errorf("%s: its answer: %w", p.path, err)
	case resp.Kind != "CredentialProviderResponse" || resp.APIVersion != p.version:
		return nil, fmt.Errorf("%s: its answer is %q of %q, want CredentialProviderResponse of %s", p.path, resp.Kind, resp.APIVersion, p.version)
	}
	return resp, nil
}

// bounded keeps the first bytes that are written to it.
type bounded struct {
	data []byte
	max  int
	cut  bool
}

func (b *bounded) Write(data []byte) (int, error) {
	keep := min(len(data), b.max-len(b.data))
	b.cut = b.cut || keep < len(data)
	b.data = append(b.data, data[:keep]...)
	return len(data), nil
}
