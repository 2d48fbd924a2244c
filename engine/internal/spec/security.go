package spec

import (
	"fmt"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Seccomp says which system call filter a container gets.
type Seccomp struct {
	Unconfined bool
	Localhost  string // path of a profile file; with neither: the runtime's default
}

// SeccompWanted reads the request: the field seccomp, or else the old
// seccomp_profile_path. Nothing set means unconfined, and so does privileged.
func SeccompWanted(sc *runtimeapi.LinuxContainerSecurityContext) (Seccomp, error) {
	if sc.GetPrivileged() {
		return Seccomp{Unconfined: true}, nil
	}
	p := sc.GetSeccomp()
	if p == nil {
		return seccompByPath(sc.GetSeccompProfilePath())
	}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return Seccomp{}, nil
	case runtimeapi.SecurityProfile_Unconfined:
		return Seccomp{Unconfined: true}, nil
	case runtimeapi.SecurityProfile_Localhost:
		return seccompFile("seccomp.localhost_ref", p.LocalhostRef)
	}
	return Seccomp{}, invalid("seccomp.profile_type %v is unknown", p.ProfileType)
}

func seccompByPath(s string) (Seccomp, error) {
	switch s {
	case "", "unconfined":
		return Seccomp{Unconfined: true}, nil
	case "runtime/default", "docker/default":
		return Seccomp{}, nil
	}
	file, ok := strings.CutPrefix(s, "localhost/")
	if !ok {
		return Seccomp{}, invalid("seccomp_profile_path %q is not runtime/default, unconfined or localhost/PATH", s)
	}
	return seccompFile("seccomp_profile_path", file)
}

// seccompFile refuses an empty or relative name: taken for "no profile" it
// would leave the container unconfined (CVE-2023-2431).
func seccompFile(field, file string) (Seccomp, error) {
	file = strings.TrimPrefix(file, "localhost/")
	if !path.IsAbs(file) {
		return Seccomp{}, invalid("%s: %q is not an absolute path", field, file)
	}
	return Seccomp{Localhost: file}, nil
}

// AppArmorWanted is what a request says of AppArmor, in the form of the older of
// its fields: "", "unconfined", "runtime/default" or "localhost/PROFILE".
func AppArmorWanted(sc *runtimeapi.LinuxContainerSecurityContext) string {
	p := sc.GetApparmor()
	if p == nil {
		return sc.GetApparmorProfile()
	}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_Unconfined:
		return "unconfined"
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return "runtime/default"
	}
	return "localhost/" + strings.TrimPrefix(p.LocalhostRef, "localhost/")
}

// appArmor returns the name of the profile to run under, "" for none. As
// everywhere in Kubernetes, who asks for nothing gets the default profile where
// there is one.
func (in *Input) appArmor() (string, error) {
	name := AppArmorWanted(in.Config.GetLinux().GetSecurityContext())
	switch {
	case name == "unconfined", name == "" && (in.privileged() || !in.Host.AppArmor):
		return "", nil
	case name == "":
		profile, err := in.Host.DefaultAppArmor()
		if err != nil {
			in.warn(fmt.Sprintf("no AppArmor profile: %v", err))
		}
		return profile, nil
	case !in.Host.AppArmor:
		return "", invalid("apparmor: profile %q is asked for, and this host has no AppArmor", name)
	case name == "runtime/default" && in.privileged():
		return "", nil
	case name == "runtime/default":
		profile, err := in.Host.DefaultAppArmor()
		if err != nil {
			return "", fmt.Errorf("apparmor: %w", err)
		}
		return profile, nil
	}
	profile, ok := strings.CutPrefix(name, "localhost/")
	if !ok || profile == "" {
		return "", invalid("apparmor: %q is none of runtime/default, unconfined and localhost/PROFILE", name)
	}
	if !in.Host.LoadedAppArmor(profile) {
		return "", invalid("apparmor: profile %q is not loaded", profile)
	}
	if in.privileged() {
		return "", nil
	}
	return profile, nil
}
