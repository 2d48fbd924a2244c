package engine

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"

	"podstead/cri"
	"podstead/engine/internal/spec"
)

// applySeccomp sets the system call filter that the request chose.
func (e *Engine) applySeccomp(s *specs.Spec, wanted spec.Seccomp) error {
	switch {
	case wanted.Unconfined:
		return nil
	case wanted.Localhost == "":
		return e.defaultSeccomp(s)
	}
	b, err := os.ReadFile(wanted.Localhost)
	if err != nil {
		return cri.Errorf(codes.InvalidArgument, "seccomp profile: %v", err)
	}
	profile, err := seccomp.LoadProfile(string(b), s)
	if err != nil {
		return cri.Errorf(codes.InvalidArgument, "seccomp profile %s: %v", wanted.Localhost, err)
	}
	if profile == nil {
		return cri.Errorf(codes.InvalidArgument, "seccomp profile %s: it has no default action and no rules", wanted.Localhost)
	}
	s.Linux.Seccomp = profile
	return nil
}

// defaultSeccomp sets the runtime's own profile, Docker's, which depends on the
// capabilities of the container.
func (e *Engine) defaultSeccomp(s *specs.Spec) (err error) {
	s.Linux.Seccomp, err = e.profiles.get(s)
	return err
}

// maxProfiles bounds the cache: few sets of capabilities are in use.
const maxProfiles = 64

// profileCache keeps the default profile for sets of capabilities, so that
// containers share it. The zero value is ready.
type profileCache struct {
	mu     sync.Mutex
	byCaps map[string]*specs.LinuxSeccomp
}

func (p *profileCache) get(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	key := strings.Join(s.Process.Capabilities.Bounding, ",")
	p.mu.Lock()
	defer p.mu.Unlock()
	if got, ok := p.byCaps[key]; ok {
		return got, nil
	}
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	if p.byCaps == nil || len(p.byCaps) >= maxProfiles {
		p.byCaps = map[string]*specs.LinuxSeccomp{}
	}
	p.byCaps[key] = profile
	return profile, nil
}
