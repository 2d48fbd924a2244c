package engine

import (
	"fmt"
	"os"

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
func (e *Engine) defaultSeccomp(s *specs.Spec) error {
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return fmt.Errorf("default seccomp profile: %w", err)
	}
	s.Linux.Seccomp = profile
	return nil
}
