// Package selinux chooses the SELinux labels of pods and containers, and
// labels files. What the labels mean is the host's policy; which they are by
// default stands in its lxc_contexts. On a host without SELinux, or whose policy
// knows nothing of containers, there are none, and all calls do nothing.
//
// It is called by the engine alone and keeps nothing: which categories are taken
// is seen from the engine's records.
package selinux

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// Labels are security contexts, USER:ROLE:TYPE:LEVEL. The zero value is none.
type Labels struct {
	Process string `json:",omitempty"` // of processes
	Mount   string `json:",omitempty"` // of the files that they may use
}

// Enabled tells whether the host has SELinux with a policy loaded.
func Enabled() bool { return selinux.GetEnabled() }

// ForPod returns the labels of a pod: the policy's own for containers, with what
// the options change. Unless they name a level, it has two categories that taken
// does not tell to be another pod's.
func ForPod(o *runtimeapi.SELinuxOption, taken func(level string) bool) (Labels, error) {
	if !Enabled() {
		return Labels{}, nil
	}
	for {
		process, mount, err := label.InitLabels(nil)
		if err != nil {
			return Labels{}, err
		}
		selinux.ReleaseLabel(process) // the records tell what is taken
		if process == "" || mount == "" {
			return Labels{}, noContexts(o)
		}
		l, err := Labels{process, mount}.With(o)
		if err != nil {
			return Labels{}, err
		}
		if o.GetLevel() != "" || Level(l.Process) == "" || !taken(Level(l.Process)) {
			return l, l.check()
		}
	}
}

// noContexts refuses options where the policy has nothing that they could change.
func noContexts(o *runtimeapi.SELinuxOption) error {
	if !Enabled() || o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() == "" {
		return nil
	}
	return cri.Errorf(codes.InvalidArgument, "linux.security_context.selinux_options: the host's SELinux policy has no contexts for containers (lxc_contexts)")
}

// ForContainer returns the labels of a container of a pod with these labels. A
// privileged one has none of its own for its processes: SELinux restricts them
// as the runtime itself, or as the policy has it for such.
func (pod Labels) ForContainer(o *runtimeapi.SELinuxOption, privileged bool) (Labels, error) {
	if pod == (Labels{}) {
		return Labels{}, noContexts(o)
	}
	l, err := pod.With(o)
	if err == nil {
		err = l.check()
	}
	if privileged {
		l.Process = ""
	}
	return l, err
}

// With changes what the options name: all of it for processes, user and level
// for files, whose role and type are not a process's.
func (l Labels) With(o *runtimeapi.SELinuxOption) (Labels, error) {
	process, err := parse(l.Process)
	if err != nil {
		return Labels{}, err
	}
	mount, err := parse(l.Mount)
	if err != nil {
		return Labels{}, err
	}
	for _, part := range []struct {
		field, value string
		of           []*context
		at           int
	}{
		{"user", o.GetUser(), []*context{&process, &mount}, user},
		{"role", o.GetRole(), []*context{&process}, role},
		{"type", o.GetType(), []*context{&process}, typ},
		{"level", o.GetLevel(), []*context{&process, &mount}, level},
	} {
		if part.value == "" {
			continue
		}
		bad := func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == ':' && part.at != level }
		if strings.ContainsFunc(part.value, bad) {
			return Labels{}, cri.Errorf(codes.InvalidArgument, "linux.security_context.selinux_options.%s: %q cannot be part of a label", part.field, part.value)
		}
		for _, c := range part.of {
			c[part.at] = part.value
		}
	}
	return Labels{process.String(), mount.String()}, nil
}

// Shared is the label of files that containers of every level may use.
func (l Labels) Shared() string {
	c, err := parse(l.Mount)
	if err != nil || c[level] == "" {
		return l.Mount
	}
	c[level] = "s0"
	return c.String()
}

// check asks the kernel whether its policy knows the labels.
func (l Labels) check() error {
	for _, context := range []string{l.Process, l.Mount} {
		if err := selinux.SecurityCheckContext(context); err != nil {
			return cri.Errorf(codes.InvalidArgument, "linux.security_context.selinux_options: the host's SELinux policy does not allow the label %s: %v", context, err)
		}
	}
	return nil
}

// context is a label in its parts.
type context [4]string

const (
	user = iota
	role
	typ
	level
)

func parse(label string) (c context, err error) {
	parts := strings.SplitN(label, ":", len(c))
	if len(parts) < level {
		return c, fmt.Errorf("SELinux label %q is not USER:ROLE:TYPE[:LEVEL]", label)
	}
	copy(c[:], parts)
	return c, nil
}

func (c context) String() string {
	parts := c[:]
	if c[level] == "" {
		parts = c[:level]
	}
	return strings.Join(parts, ":")
}

// Level returns the level of a label, "" if it has none.
func Level(label string) string {
	c, err := parse(label)
	if err != nil {
		return ""
	}
	return c[level]
}

// MountOption is the option with which all files of a mount get a label, as
// fsconfig takes it; none for no label.
func MountOption(label string) []string {
	if label == "" {
		return nil
	}
	return []string{"context=" + label}
}

// LabelFile gives one file a label. A file system that has none is no error.
func LabelFile(path, label string) error {
	if label == "" {
		return nil
	}
	return tolerate(selinux.LsetFileLabel(path, label))
}

// Relabel gives a file, or a directory and all below it, a label. It is done
// with last, so what has the label needs nothing. The system's own directories
// are refused, and a file system without labels is no error.
func Relabel(path, to string) error {
	if to == "" {
		return nil
	}
	if has, err := selinux.FileLabel(path); err == nil && has == to {
		return nil
	}
	return tolerate(selinux.Chcon(path, to, true))
}

func tolerate(err error) error {
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
