// Package registry reads images from registries that speak the OCI
// distribution protocol: manifests by tag or digest, and blobs, resumed where
// they broke off. Which hosts are asked for a reference, how they are reached
// and trusted, and how a token is got, is the business of containerd's library,
// so that certs.d/HOST/hosts.toml means here what it means there; the transfers
// are our own, for what the project promises of them.
//
// Whatever a registry sends is attacker input: answers are bounded, digests
// checked, and credentials stay with the host that they are for.
//
// Only the image store calls it. It keeps nothing on disk.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
)

// Config of access to registries.
type Config struct {
	CertsDir string        // "" for none
	Stall    time.Duration // a connection without progress for so long is given up
	Log      *slog.Logger
}

// Auth is a credential. ServerAddress, if given, is the host that it is for;
// else it is for the reference's own.
type Auth struct {
	Username, Password, IdentityToken, RegistryToken string
	ServerAddress                                    string
}

// Classes of errors, to be told by errors.Is.
var (
	ErrNotFound     = errors.New("not found")
	ErrUnauthorized = errors.New("not authorized")
	ErrUnavailable  = errors.New("registry is unavailable")
	ErrDigest       = errors.New("digest or size is wrong")
	ErrTooLarge     = errors.New("answer is too large")
	ErrConfig       = errors.New("registry configuration")
)

// ErrElsewhere is joined to ErrDigest when another host may have the right
// bytes: the transfer can be started again.
var ErrElsewhere = errors.New("another host is left to ask")

// Repository is one repository, on all the hosts that may have it. It is safe
// for concurrent use.
type Repository struct {
	cfg   Config
	name  reference.Named
	auth  Auth
	hosts []docker.RegistryHost // in the order in which they are asked
	quiet *log.Entry            // keeps the library's log lines out of ours

	asked atomic.Pointer[string] // the host that was asked last

	mu  sync.Mutex
	bad map[badBlob]bool // what had the wrong digest where
}

type badBlob struct {
	host   int
	digest digest.Digest
}

// Open reads the configuration for the reference's host; it asks nobody yet.
func Open(ctx context.Context, cfg Config, name reference.Named, auth Auth) (*Repository, error) {
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	r := &Repository{cfg: cfg, name: name, auth: auth, bad: map[badBlob]bool{}, quiet: logrus.NewEntry(silent)}
	options := config.HostOptions{
		Credentials: r.credentials,
		UpdateClient: func(c *http.Client) error {
			c.CheckRedirect = checkRedirect
			return nil
		},
	}
	if cfg.CertsDir != "" {
		options.HostDir = func(host string) (string, error) {
			dir, err := config.HostDirFromRoot(cfg.CertsDir)(host)
			if err != nil {
				return "", err
			}
			return dir, checkHostsFile(filepath.Join(dir, "hosts.toml"))
		}
	}
	hosts, err := config.ConfigureHosts(log.WithLogger(ctx, r.quiet), options)(reference.Domain(name))
	if err != nil {
		return nil, fmt.Errorf("%w for %s: %w", ErrConfig, reference.Domain(name), err)
	}
	for _, h := range hosts {
		if h.Capabilities.Has(docker.HostCapabilityPull) {
			r.hosts = append(r.hosts, h)
		}
	}
	if len(r.hosts) == 0 {
		return nil, fmt.Errorf("%w for %s: no host may be pulled from", ErrConfig, reference.Domain(name))
	}
	return r, nil
}

// Host is the one that was asked last, "" if none was.
func (r *Repository) Host() string {
	if h := r.asked.Load(); h != nil {
		return *h
	}
	return ""
}

// Close lets go of idle connections.
func (r *Repository) Close() {
	for _, h := range r.hosts {
		h.Client.CloseIdleConnections()
	}
}

// hostsFile has the shape of a hosts.toml, for finding mistakes in it.
type hostsFile struct {
	hostConfig
	Server string                `toml:"server"`
	Host   map[string]hostConfig `toml:"host"`
}

type hostConfig struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// checkHostsFile refuses a file that cannot be read. The library would go on
// without it, and so ask hosts that the file was written to avoid.
func checkHostsFile(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var f hostsFile
	if err := toml.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for name, h := range f.Host {
		if _, err := url.Parse(name); err != nil {
			return fmt.Errorf("%s: host %q: %w", path, name, err)
		}
		if _, err := time.ParseDuration(h.DialTimeout); h.DialTimeout != "" && err != nil {
			return fmt.Errorf("%s: host %q: dial_timeout: %w", path, name, err)
		}
	}
	return nil
}

// credentials gives the credential to the host that it is for, and to no
// other, mirrors included.
func (r *Repository) credentials(host string) (user, secret string, err error) {
	if !r.isOurs(host) {
		return "", "", nil
	}
	if r.auth.IdentityToken != "" {
		return "", r.auth.IdentityToken, nil
	}
	return r.auth.Username, r.auth.Password, nil
}

func (r *Repository) isOurs(host string) bool {
	want := reference.Domain(r.name)
	if a := r.auth.ServerAddress; a != "" {
		// "https://index.docker.io/v1/" as well as "quay.io"
		if u, err := url.Parse(a); err == nil && u.Host != "" {
			a = u.Host
		}
		want, _, _ = strings.Cut(a, "/")
	}
	return canonicalHost(host) == canonicalHost(want)
}

func canonicalHost(h string) string {
	switch h {
	case "registry-1.docker.io", "index.docker.io":
		return "docker.io"
	}
	return strings.TrimSuffix(h, ":443")
}

// isMirror says that a host is not the reference's own.
func (r *Repository) isMirror(h docker.RegistryHost) bool {
	return canonicalHost(h.Host) != canonicalHost(reference.Domain(r.name))
}
