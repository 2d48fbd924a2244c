package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
	"podstead/agent/internal/env"
	"podstead/agent/internal/flight"
	"podstead/agent/internal/request"
	"podstead/agent/internal/source"
	"podstead/agent/internal/volume"
	"podstead/cri"
)

// openFlags: what a container could write is opened without following a link
// in its last part and without waiting for the other end of a pipe.
const openFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK

// teardownTimeout bounds one try of removing what is left of a pod.
const teardownTimeout = time.Minute

// limits are deadlines of calls to the runtime. Work goes on behind a deadline, and
// the next try joins it. A sandbox gets longer than runtimes take by themselves,
// and looks, which change nothing, less.
type limits struct{ ordinary, sandbox, look time.Duration }

// limitsOf takes the kubelet's runtimeRequestTimeout; 0: there is none.
func limitsOf(d time.Duration) limits {
	if d == 0 {
		return limits{ordinary: 2 * time.Minute, sandbox: 5 * time.Minute, look: 30 * time.Second}
	}
	return limits{ordinary: d, sandbox: 2 * d, look: d}
}

// objects finds ConfigMaps, Secrets and the storage of claims.
type objects interface {
	env.Objects
	Claim(namespace, name string) (source.Storage, error)
}

func (j job) volumes() volume.Pod {
	claims := map[string]volume.Claim{}
	for _, v := range j.pod.Spec.Volumes {
		if ref := v.PersistentVolumeClaim; ref != nil {
			s, err := j.objs.Claim(j.pod.Namespace, ref.ClaimName)
			claims[v.Name] = volume.Claim{HostPath: s.HostPath, Local: s.Local, Directory: s.Directory, CSI: s.CSI != nil, Err: err}
		}
	}
	return volume.Pod{Dir: j.podDir(string(j.pod.UID)), Spec: j.pod, Claims: claims, Projects: j.projectsFor(j.pod)}
}

func (j job) podFacts() env.Facts {
	f := j.facts
	f.PodIPs = j.ips
	return f
}

// prepare makes what the pod needs on the host. It is repeated when objects
// change.
func (j job) prepare(ctx context.Context) *stepError {
	if err := os.MkdirAll(j.podDir(string(j.pod.UID)), 0o750); err != nil {
		return failedStep(failedMount, err)
	}
	if err := j.cgroups.pod(j.requestOf(""), j.pod, j.live); err != nil {
		j.event(j.pod, "", corev1.EventTypeWarning, failedCreatePodContainer, "unable to ensure pod container exists: %v", err)
		return failedStep(failedCreatePodContainer, err)
	}
	if err := os.MkdirAll(j.request.LogDirectory(j.pod), 0o755); err != nil {
		return failedStep(failedMount, err)
	}
	volumes, err := j.publish(ctx)
	volumes.HostPath = func(path string, kind corev1.HostPathType) error { return j.hostPaths.Check(ctx, path, kind) }
	volumes.Watch = func(what string) func(error) { return flight.Part(ctx, client.FlightStep, what) }
	if err = errors.Join(err, volumes.Setup(j.objs, j.podFacts())); err != nil {
		for _, one := range each(err) {
			if ctx.Err() != nil {
				break // nobody waits for it any more
			}
			j.event(j.pod, "", corev1.EventTypeWarning, failedMount, "%v", one)
		}
		return failedStep(failedMount, err)
	}
	return nil
}

// each takes joined errors apart.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

func (j job) createSandbox(ctx context.Context) *stepError {
	ctx, cancel := context.WithTimeout(ctx, j.limits.sandbox)
	defer cancel()
	if j.step.Attempt > 0 {
		j.event(j.pod, "", corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	config, err := j.sandboxConfig(j.step.Attempt)
	if err == nil {
		_, err = j.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{
			Config:         config,
			RuntimeHandler: request.RuntimeHandler(j.pod),
		})
	}
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) {
			j.event(j.pod, "", corev1.EventTypeWarning, failedCreatePodSandbox, "Failed to create pod sandbox: %v", err)
		}
		return failedStep(failedCreatePodSandbox, err)
	}
	return nil
}

// feature tells what the pod's handler can do; all is nil-safe.
func (j job) feature() *runtimeapi.RuntimeHandlerFeatures {
	return j.features[request.RuntimeHandler(j.pod)]
}

func (j job) sandboxConfig(attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	config, err := j.requestOf("").Sandbox(j.pod, attempt)
	if err != nil {
		return nil, err
	}
	return config, j.mapUsers(config.Linux.SecurityContext.NamespaceOptions, nil)
}

// mapUsers gives a pod that is to have its own users a block of the host's, in
// which its volumes, that the host's root made, belong to its own root.
func (j job) mapUsers(o *runtimeapi.NamespaceOption, mounts []*runtimeapi.Mount) error {
	if request.HostUsers(j.pod) {
		return nil
	}
	if !j.feature().GetUserNamespaces() {
		return fmt.Errorf("can't set spec.hostUsers: false: the runtime's handler %q does not support user namespaces", request.RuntimeHandler(j.pod))
	}
	ids, err := j.userns.Take(string(j.pod.UID))
	if err != nil {
		return err
	}
	o.UsernsOptions = ids
	for _, m := range mounts {
		if m.HostPath != "" {
			m.UidMappings, m.GidMappings = ids.Uids, ids.Gids
		}
	}
	return nil
}

func (j job) stopSandbox(ctx context.Context) *stepError {
	ctx, cancel := context.WithTimeout(ctx, j.limits.sandbox)
	defer cancel()
	if _, err := j.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: j.step.ID}); err != nil {
		j.event(j.pod, "", corev1.EventTypeWarning, failedKillPod, "error killing pod: %v", err)
		return failedStep(failedKillPod, err)
	}
	return nil
}

func (j job) removeSandbox(ctx context.Context) *stepError {
	ctx, cancel := context.WithTimeout(ctx, j.limits.ordinary)
	defer cancel()
	if _, err := j.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: j.step.ID}); err != nil {
		return failedStep(failedKillPod, err)
	}
	return nil
}

func (j job) removeContainer(ctx context.Context) *stepError {
	ctx, cancel := context.WithTimeout(ctx, j.limits.ordinary)
	defer cancel()
	st, err := j.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: j.step.ID})
	switch {
	case err != nil && !cri.IsNotFound(err):
		return failedStep(failedKillPod, err)
	case st.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING:
		// A start that an agent before this one asked for took its time.
		return failedStep(failedKillPod, fmt.Errorf("container %s is not removed: it runs by now", j.step.ID))
	case err == nil:
		removeLogs(j.request.LogDirectory(j.pod), st.GetStatus().GetLogPath())
		if path := st.GetStatus().GetAnnotations()[annotationMessageFile]; within(j.podDir(string(j.pod.UID)), path) {
			os.Remove(path)
		}
	}
	if _, err := j.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: j.step.ID}); err != nil {
		return failedStep(failedKillPod, err)
	}
	return nil
}

// teardown removes all that is left of the pod on the host: its cgroup, its
// logs, and last its directory, in which the record is that would make a later
// agent try again.
func (j job) teardown(ctx context.Context) *stepError {
	ctx, cancel := context.WithTimeout(ctx, teardownTimeout)
	defer cancel()
	uid := string(j.pod.UID)
	if err := j.cgroups.remove(ctx, uid); err != nil {
		return failedStep(failedKillPod, err)
	}
	if err := volume.Remove(j.request.LogDirectory(j.pod)); err != nil {
		return failedStep(failedKillPod, err)
	}
	if err := j.unpublish(ctx); err != nil {
		j.event(j.pod, "", corev1.EventTypeWarning, "FailedUnMount", "%v", err)
		return failedStep(failedKillPod, err)
	}
	if err := volume.Remove(j.podDir(uid)); err != nil {
		j.event(j.pod, "", corev1.EventTypeWarning, "FailedUnMount", "%v", err)
		return failedStep(failedKillPod, err)
	}
	j.userns.Release(uid)
	return nil
}
