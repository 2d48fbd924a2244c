package request

import (
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/env"
	"podstead/agent/internal/observe"
)

// Container describes one instance that is to be made.
type Container struct {
	Pod      *corev1.Pod
	Spec     *corev1.Container
	Restarts int32
	Backoff  time.Duration // for observe.AnnotationBackoff
	ImageRef string        // what the runtime calls the image
	User     ImageUser
	Env      *env.Result
	Mounts   []*runtimeapi.Mount // volumes, /etc/hosts, termination message
	// Target is the ID of the container whose processes an ephemeral one is to
	// see, "" for none.
	Target string
	// MessageFile is the host's side of the termination message.
	MessageFile string
}

// Container makes the configuration of a container.
func (n Node) Container(c Container) (*runtimeapi.ContainerConfig, error) {
	security, err := n.containerSecurity(c.Pod, c.Spec, c.User)
	if err != nil {
		return nil, err
	}
	if o := security.NamespaceOptions; c.Target != "" && o.Pid == runtimeapi.NamespaceMode_CONTAINER {
		o.Pid, o.TargetId = runtimeapi.NamespaceMode_TARGET, c.Target
	}
	config := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Spec.Name, Attempt: uint32(c.Restarts)},
		Image:       &runtimeapi.ImageSpec{Image: c.ImageRef, UserSpecifiedImage: c.Spec.Image},
		Command:     c.Env.Expand(c.Spec.Command),
		Args:        c.Env.Expand(c.Spec.Args),
		WorkingDir:  c.Spec.WorkingDir,
		Labels:      n.labels(c.Pod, c.Spec.Name),
		Annotations: annotations(c),
		Mounts:      c.Mounts,
		LogPath:     LogPath(c.Spec.Name, c.Restarts),
		Stdin:       c.Spec.Stdin,
		StdinOnce:   c.Spec.StdinOnce,
		Tty:         c.Spec.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       n.Resources(c.Pod, c.Spec),
			SecurityContext: security,
		},
	}
	for _, v := range c.Env.Vars {
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: v.Name, Value: []byte(v.Value)})
	}
	if l := c.Spec.Lifecycle; l != nil && l.StopSignal != nil {
		config.StopSignal = StopSignal(*l.StopSignal)
	}
	return config, nil
}

func annotations(c Container) map[string]string {
	a := map[string]string{
		observe.AnnotationHash:          ContainerHash(c.Pod, c.Spec),
		observe.AnnotationRestartCount:  strconv.Itoa(int(c.Restarts)),
		observe.AnnotationMessagePath:   c.Spec.TerminationMessagePath,
		observe.AnnotationMessagePolicy: string(c.Spec.TerminationMessagePolicy),
		observe.AnnotationBackoff:       c.Backoff.String(),
		observe.AnnotationMessageFile:   c.MessageFile,
		observe.AnnotationResources:     Amounts(c.Pod, c.Spec).String(),
	}
	if g := c.Pod.Spec.TerminationGracePeriodSeconds; g != nil {
		a[observe.AnnotationGracePeriod] = strconv.FormatInt(*g, 10)
	}
	return a
}

// StopSignal is a signal in the runtime's words, where SIGRTMIN+3 is
// SIGRTMINPLUS3; 0 if there is none of that name.
func StopSignal(s corev1.Signal) runtimeapi.Signal {
	name := strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(string(s))
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}
