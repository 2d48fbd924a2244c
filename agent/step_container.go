package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/client"
	"podstead/agent/internal/device"
	"podstead/agent/internal/env"
	"podstead/agent/internal/flight"
	"podstead/agent/internal/image"
	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
	"podstead/agent/internal/request"
	"podstead/agent/internal/volume"
	"podstead/cri/tracing"
	"podstead/sys"
)

const annotationMessageFile = observe.AnnotationMessageFile

// startContainer makes one instance of a container run: image, environment,
// mounts, create, start, postStart hook.
func (j job) startContainer(ctx context.Context) *stepError {
	img, failed := j.image(ctx)
	if failed != nil {
		return failed
	}
	volumes, failed := j.imageVolumes(ctx)
	if failed != nil {
		return failed
	}
	config, failed := j.config(ctx, img, volumes)
	if failed != nil {
		if ctx.Err() == nil {
			j.event(j.pod, j.spec.Name, corev1.EventTypeWarning, "Failed", "Error: %s", failed.message)
		}
		return failed
	}
	id, failed := j.createAndStart(ctx, config)
	if ctx.Err() == nil {
		j.metrics.Started(kindOf(j.pod, j.spec.Name), failed.reasonOf())
		j.metrics.ImageVolumes(len(volumes), failed == nil)
	}
	if failed != nil {
		if ctx.Err() == nil {
			j.event(j.pod, j.spec.Name, corev1.EventTypeWarning, "Failed", "Error: %s", failed.message)
		}
		return failed
	}
	return j.postStart(ctx, id)
}

// kindOf a container, in the words of metrics.
func kindOf(pod *corev1.Pod, name string) string {
	is := func(c corev1.Container) bool { return c.Name == name }
	switch {
	case slices.ContainsFunc(pod.Spec.Containers, is):
		return "container"
	case slices.ContainsFunc(pod.Spec.InitContainers, is):
		return "init_container"
	}
	return "ephemeral_container"
}

func (j job) image(ctx context.Context) (*runtimeapi.Image, *stepError) {
	return j.ensure(ctx, j.spec.Image, j.spec.ImagePullPolicy)
}

// imageVolumes brings the images that the container mounts: their IDs by the
// names of the volumes.
func (j job) imageVolumes(ctx context.Context) (map[string]string, *stepError) {
	ids := map[string]string{}
	for _, v := range j.pod.Spec.Volumes {
		mounted := slices.ContainsFunc(j.spec.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		if v.Image == nil || !mounted {
			continue
		}
		img, failed := j.ensure(ctx, v.Image.Reference, v.Image.PullPolicy)
		if failed != nil {
			return nil, failed
		}
		ids[v.Name] = img.Id
	}
	return ids, nil
}

// ensure brings one image.
func (j job) ensure(ctx context.Context, ref string, policy corev1.PullPolicy) (*runtimeapi.Image, *stepError) {
	ctx, end := tracing.Span(ctx, "image", attribute.String("container.image.name", ref), attribute.String("server.address", image.Host(ref)))
	img, failed := j.bring(ctx, ref, policy)
	if failed == nil {
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("container.image.id", img.Id),
			attribute.StringSlice("container.image.repo_digests", img.RepoDigests), attribute.Int64("podstead.image.bytes", int64(img.Size)))
	}
	end(failed.err())
	return img, failed
}

func (j job) bring(ctx context.Context, ref string, policy corev1.PullPolicy) (*runtimeapi.Image, *stepError) {
	var secrets []*corev1.Secret
	missing := ""
	for _, ref := range j.pod.Spec.ImagePullSecrets {
		if s := j.objs.Secret(j.pod.Namespace, ref.Name); s != nil {
			secrets = append(secrets, s)
		} else {
			missing += fmt.Sprintf("; image pull secret %q is not there", ref.Name)
			j.event(j.pod, "", corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name)
		}
	}
	name := j.spec.Name
	pulled := func(error) {}
	var began time.Time
	img, err := j.puller.Ensure(ctx, image.Request{
		Image: ref, Policy: policy, Secrets: secrets, Handler: request.RuntimeHandler(j.pod),
		Pulling: func() {
			began = time.Now()
			pulled = flight.Watch(ctx, client.FlightStep, "pull "+ref)
			j.event(j.pod, name, corev1.EventTypeNormal, "Pulling", "Pulling image %q", ref)
		},
		Pulled: func(p image.Pulled) {
			if p.Present {
				j.event(j.pod, name, corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine and can be accessed by the pod", ref)
				return
			}
			j.metrics.Pulled(p.Waited, p.Size)
			j.event(j.pod, name, corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.",
				ref, p.Took.Truncate(time.Millisecond), p.Waited.Truncate(time.Millisecond), p.Size)
		},
	})
	pulled(err)
	if j.pulls != nil && !began.IsZero() {
		j.pulls.add(began, time.Now())
	}
	if err == nil {
		return img, nil
	}
	var e *image.Error
	if !errors.As(err, &e) {
		return nil, failedStep(image.ErrImagePull, err)
	}
	e.Message += missing
	if ctx.Err() == nil {
		j.noImage(ref, e)
	}
	return nil, &stepError{e.Reason, e.Message}
}

// noImage tells why there is no image, as the kubelet does: what went wrong, and
// what state the container is in for it.
func (j job) noImage(ref string, e *image.Error) {
	reason, message := "Failed", e.Message
	switch e.Reason {
	case image.ErrImageNeverPull:
		reason = image.ErrImageNeverPull
	case image.ImageInspectError, image.InvalidImageName:
		reason = "InspectFailed"
	default:
		message = fmt.Sprintf("Failed to pull image %q: %s", ref, e.Cause)
	}
	j.event(j.pod, j.spec.Name, corev1.EventTypeWarning, reason, "%s", message)
	j.event(j.pod, j.spec.Name, corev1.EventTypeWarning, "Failed", "Error: %s", e.Reason)
}

// config makes the container's configuration and the files it mounts; images
// are those of its image volumes.
func (j job) config(ctx context.Context, img *runtimeapi.Image, images map[string]string) (*runtimeapi.ContainerConfig, *stepError) {
	vars, err := env.Make(j.pod, j.spec, j.objs, j.podFacts())
	if err != nil {
		return nil, failedStep(createConfigError, err)
	}
	if len(vars.Skipped) > 0 {
		j.event(j.pod, j.spec.Name, corev1.EventTypeWarning, "InvalidEnvironmentVariableNames",
			"Keys [%s] from the EnvFrom were skipped since they are considered invalid environment variable names.", strings.Join(vars.Skipped, ", "))
	}
	mounts, err := j.volumes().Mounts(j.spec, volume.Options{
		Vars: vars, RecursiveReadOnly: j.feature().GetRecursiveReadOnlyMounts(), Images: images,
	})
	if err != nil {
		return nil, failedStep(createConfigError, err)
	}
	hosts, err := j.hosts(mounts)
	if err != nil {
		return nil, failedStep(createConfigError, err)
	}
	mounts = append(mounts, hosts...)
	messageFile, err := j.messageFile()
	if err != nil {
		return nil, failedStep(createConfigError, err)
	}
	mounts = append(mounts, &runtimeapi.Mount{ContainerPath: j.spec.TerminationMessagePath, HostPath: messageFile, SelinuxRelabel: true})
	config, err := j.requestOf(j.spec.Name).Container(request.Container{
		Pod: j.pod, Spec: j.spec, Restarts: j.step.Restarts, Backoff: j.step.Backoff, ImageRef: img.Id,
		User: request.UserOf(img), Env: vars, Mounts: mounts, MessageFile: messageFile, Target: j.processes,
	})
	if err == nil {
		var grants map[string]device.Grant
		grants, err = j.devices.Container(ctx, j.pod, j.spec.Name)
		device.Apply(config, grants)
	}
	if err == nil {
		err = j.mapUsers(config.GetLinux().GetSecurityContext().GetNamespaceOptions(), config.GetMounts())
	}
	if err != nil {
		return nil, failedStep(createConfigError, err)
	}
	j.pin(ctx, config)
	return config, nil
}

// hosts writes the pod's /etc/hosts and mounts it, unless the container mounts
// something of its own there.
func (j job) hosts(mounts []*runtimeapi.Mount) ([]*runtimeapi.Mount, error) {
	for _, m := range mounts {
		if path.Clean(m.ContainerPath) == "/etc/hosts" {
			return nil, nil
		}
	}
	var own []byte
	if j.pod.Spec.HostNetwork {
		own, _ = os.ReadFile("/etc/hosts")
	}
	file := filepath.Join(j.podDir(string(j.pod.UID)), "etc-hosts")
	content := j.request.Hosts(j.pod, j.ips, own)
	// Containers may have written to it, and more than fits into memory.
	if readTail(file, int64(len(content))+1, true) != string(content) {
		if err := sys.WriteFileAtomic(file, content, 0o644, false); err != nil {
			return nil, err
		}
	}
	return []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: file, SelinuxRelabel: true}}, nil
}

// messageFile makes the file for an instance's termination message.
func (j job) messageFile() (string, error) {
	dir := filepath.Join(j.podDir(string(j.pod.UID)), "containers", j.spec.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var id [4]byte
	rand.Read(id[:])
	name := filepath.Join(dir, hex.EncodeToString(id[:]))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return name, f.Chmod(0o666) // past the umask: the container's user writes it
}

func (j job) createAndStart(ctx context.Context, config *runtimeapi.ContainerConfig) (id string, failed *stepError) {
	ctx, cancel := context.WithTimeout(ctx, j.limits.ordinary)
	defer cancel()
	if err := os.MkdirAll(filepath.Join(j.request.LogDirectory(j.pod), j.spec.Name), 0o755); err != nil {
		return "", failedStep(createError, err)
	}
	sandbox, err := j.sandboxConfig(j.sandbox.Attempt)
	if err != nil {
		return "", failedStep(createError, err)
	}
	created, err := j.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  j.sandbox.ID,
		Config:        config,
		SandboxConfig: sandbox,
	})
	if err != nil {
		return "", failedStep(createError, err)
	}
	id = created.ContainerId
	j.event(j.pod, j.spec.Name, corev1.EventTypeNormal, "Created", "Container created")
	if j.leaving.Load() || ctx.Err() != nil {
		return id, failedStep(runError, errPodEnds)
	}
	// A start that nobody waits for might go on, and the container run unseen when
	// its sandbox is stopped. Only the agent's own end interrupts it.
	start, cancel := context.WithTimeout(j.life, j.limits.ordinary)
	defer cancel()
	if _, err := j.runtime.StartContainer(start, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return id, failedStep(runError, err)
	}
	j.pins.started(id, string(j.pod.UID), j.spec.Name, config.Linux.Resources.CpusetCpus)
	j.event(j.pod, j.spec.Name, corev1.EventTypeNormal, "Started", "Container started")
	return id, nil
}

// postStart runs the hook, for as long as it takes; a container whose hook fails is
// killed as any other, with its preStop hook.
func (j job) postStart(ctx context.Context, id string) *stepError {
	if j.spec.Lifecycle == nil || j.spec.Lifecycle.PostStart == nil {
		return nil
	}
	err := j.hook(ctx, id, "postStart", j.spec.Lifecycle.PostStart, 0)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	j.event(j.pod, j.spec.Name, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
	j.step.Kind, j.step.ID, j.step.Message = plan.Kill, id, "FailedPostStartHook"
	j.step.Grace = time.Duration(*j.pod.Spec.TerminationGracePeriodSeconds) * time.Second
	if failed := j.killContainer(ctx); failed != nil {
		return failed
	}
	return failedStep(postStartError, err)
}

// killContainer ends a container: its preStop hook and the signal share the
// grace period.
func (j job) killContainer(ctx context.Context) *stepError {
	grace := j.step.Grace
	if j.step.Reason != plan.PodEnds { // which alone may be told to be at once
		grace = max(grace, plan.MinGrace)
	}
	began := time.Now()
	if j.spec != nil {
		j.event(j.pod, j.step.Container, corev1.EventTypeNormal, "Killing", "%s", j.step.Message)
	}
	if h := j.preStop(); h != nil && grace > 0 {
		if err := j.hook(ctx, j.step.ID, "preStop", h, grace); err != nil && ctx.Err() == nil {
			j.event(j.pod, j.step.Container, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
		grace = max(grace-time.Since(began), plan.MinGrace)
	}
	if ctx.Err() != nil {
		return failedStep(killError, ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, grace+j.limits.ordinary)
	defer cancel()
	seconds := int64((grace + time.Second - 1) / time.Second)
	_, err := j.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: j.step.ID, Timeout: seconds})
	if err != nil {
		return failedStep(killError, fmt.Errorf("stop container: %w", err))
	}
	return nil
}

func (j job) preStop() *corev1.LifecycleHandler {
	if j.spec == nil || j.spec.Lifecycle == nil {
		return nil
	}
	return j.spec.Lifecycle.PreStop
}

// removeLogs removes the log of one instance and its rotated parts.
func removeLogs(dir, log string) {
	if !within(dir, log) {
		return
	}
	parts, _ := filepath.Glob(log + ".*")
	for _, p := range append(parts, log) {
		os.Remove(p)
	}
}
