package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"

	"podstead/agent/internal/observe"
	"podstead/agent/internal/plan"
	"podstead/cri"
)

// defaultContainer is the annotation by which a pod names its main container.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// container chooses the container that a request means.
func container(p *corev1.Pod, name string) (*corev1.ContainerStatus, error) {
	if name == "" {
		name = p.Annotations[defaultContainer]
	}
	if name == "" {
		name = p.Spec.Containers[0].Name
	}
	var have []string
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i], nil
			}
			have = append(have, list[i].Name)
		}
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s, choose one of: %v", name, p.Name, have))
}

// id strips the runtime's name from a container ID.
func id(full string) string {
	_, bare, ok := strings.Cut(full, "://")
	if !ok {
		return full
	}
	return bare
}

// running returns the ID of the container that a request means, which must run.
func (s *server) running(r *http.Request) (string, error) {
	p, _, err := s.pod(r)
	if err != nil {
		return "", err
	}
	cs, err := container(p, r.URL.Query().Get("container"))
	if err != nil {
		return "", err
	}
	if cs.State.Running == nil {
		return "", apierrors.NewConflict(corev1.Resource("pods"), p.Name, fmt.Errorf("container %s is not running: %s", cs.Name, stateOf(cs)))
	}
	return id(cs.ContainerID), nil
}

func stateOf(cs *corev1.ContainerStatus) string {
	switch {
	case cs.State.Waiting != nil:
		return "waiting, " + cs.State.Waiting.Reason
	case cs.State.Terminated != nil:
		return fmt.Sprintf("terminated with exit code %d", cs.State.Terminated.ExitCode)
	}
	return "unknown"
}

func flag(q url.Values, name string) bool {
	v, _ := strconv.ParseBool(q.Get(name))
	return v
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) error {
	ctr, err := s.running(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if len(q["command"]) == 0 {
		return apierrors.NewBadRequest("no command")
	}
	tty := flag(q, "tty")
	have := session{flag(q, "stdin"), flag(q, "stdout"), flag(q, "stderr") && !tty, tty}
	resp, err := s.runtime.Exec(r.Context(), &runtimeapi.ExecRequest{ContainerId: ctr, Cmd: q["command"], Tty: tty,
		Stdin: have.in, Stdout: have.out, Stderr: have.err})
	if err != nil {
		return err
	}
	return s.join(w, r, resp.Url, have)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) error {
	ctr, err := s.running(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	p, _, err := s.pod(r)
	if err != nil {
		return err
	}
	cs, _ := container(p, q.Get("container"))
	spec := plan.Find(p, cs.Name)
	tty := spec != nil && spec.TTY
	have := session{flag(q, "stdin"), flag(q, "stdout"), flag(q, "stderr") && !tty, tty}
	resp, err := s.runtime.Attach(r.Context(), &runtimeapi.AttachRequest{ContainerId: ctr, Tty: tty,
		Stdin: have.in, Stdout: have.out, Stderr: have.err})
	if err != nil {
		return err
	}
	return s.join(w, r, resp.Url, have)
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) error {
	p, _, err := s.pod(r)
	if err != nil {
		return err
	}
	sandboxes, err := s.runtime.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{observe.LabelPodUID: string(p.UID)},
	}})
	if err != nil {
		return err
	}
	if len(sandboxes.Items) == 0 {
		return apierrors.NewConflict(corev1.Resource("pods"), p.Name, fmt.Errorf("the pod is not running"))
	}
	newest := slices.MaxFunc(sandboxes.Items, func(a, b *runtimeapi.PodSandbox) int { return int(a.CreatedAt - b.CreatedAt) })
	var ports []int32
	for _, text := range r.URL.Query()["ports"] {
		for one := range strings.SplitSeq(text, ",") {
			n, err := strconv.ParseInt(one, 10, 32)
			if err != nil {
				return apierrors.NewBadRequest("ports: " + strconv.Quote(one) + " is not a number")
			}
			ports = append(ports, int32(n))
		}
	}
	resp, err := s.runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: newest.Id, Port: ports})
	if err != nil {
		return err
	}
	return s.tunnel(w, r, resp.Url)
}

// proxy joins the client's connection with the runtime's streaming server,
// whose URL is good for one use.
func (s *server) proxy(w http.ResponseWriter, r *http.Request, to string) error {
	target, err := url.Parse(to)
	if err != nil {
		return fmt.Errorf("streaming URL of the runtime: %w", err)
	}
	p := &httputil.ReverseProxy{
		Rewrite:       func(pr *httputil.ProxyRequest) { pr.Out.URL, pr.Out.Host = target, target.Host },
		FlushInterval: -1,
		Transport:     &http.Transport{DisableKeepAlives: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			fail(w, fmt.Errorf("streaming server of the runtime: %w", err))
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	p.ServeHTTP(w, r)
	return nil
}

func (s *server) podLog(w http.ResponseWriter, r *http.Request) error {
	p, _, err := s.pod(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	cs, err := container(p, q.Get("container"))
	if err != nil {
		return err
	}
	previous := flag(q, "previous")
	ctr, err := instance(cs, previous)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("%v in pod %q", err, p.Name))
	}
	opts, err := logOptions(q)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	opts.Follow = opts.Follow && !previous
	st, err := s.runtime.ContainerStatus(r.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: ctr})
	file := st.GetStatus().GetLogPath()
	if cri.IsNotFound(err) {
		// It was removed, as by an eviction for the disk; its log may still be there.
		opts.Follow = false
		file, err = s.keptLog(p, cs, previous)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain")
	out := flusher{w}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	err = logs.ReadLogs(r.Context(), file, ctr, opts, statusOnly{runtime: s.runtime}, out, out)
	// A log that was removed while it was followed has been read to its end.
	removed := opts.Follow && errors.Is(err, fs.ErrNotExist)
	if err != nil && !removed && r.Context().Err() == nil {
		fmt.Fprintf(out, "read log of container %s: %v\n", cs.Name, err)
	}
	return nil
}

// keptLog is the log file of a container that the runtime has no more.
func (s *server) keptLog(p *corev1.Pod, cs *corev1.ContainerStatus, previous bool) (string, error) {
	restarts := cs.RestartCount
	if previous {
		restarts--
	}
	file := s.backend.LogPath(p, cs.Name, restarts)
	if _, err := os.Stat(file); err != nil {
		gone := apierrors.NewNotFound(corev1.Resource("containers"), cs.Name)
		gone.ErrStatus.Message = fmt.Sprintf("container %s of pod %s was removed, and its log with it", cs.Name, p.Name)
		return "", gone
	}
	return file, nil
}

// instance is the ID of the container's instance whose log is asked for.
func instance(cs *corev1.ContainerStatus, previous bool) (string, error) {
	last := cs.LastTerminationState.Terminated
	switch {
	case previous && last == nil:
		return "", fmt.Errorf("previous terminated container %q not found", cs.Name)
	case previous:
		return id(last.ContainerID), nil
	case cs.ContainerID != "":
		return id(cs.ContainerID), nil
	}
	reason := ""
	if cs.State.Waiting != nil {
		reason = ": " + cs.State.Waiting.Reason
	}
	return "", fmt.Errorf("container %q is waiting to start%s", cs.Name, reason)
}

func logOptions(q url.Values) (*logs.LogOptions, error) {
	o := &logs.LogOptions{Follow: flag(q, "follow"), Timestamp: flag(q, "timestamps")}
	number := func(name string) (*int64, error) {
		if !q.Has(name) {
			return nil, nil
		}
		n, err := strconv.ParseInt(q.Get(name), 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%s: %q is not a number", name, q.Get(name))
		}
		return &n, nil
	}
	var err error
	if o.TailLines, err = number("tailLines"); err != nil {
		return nil, err
	}
	if o.LimitBytes, err = number("limitBytes"); err != nil {
		return nil, err
	}
	seconds, err := number("sinceSeconds")
	if err != nil {
		return nil, err
	}
	if seconds != nil {
		o.Since = time.Now().Add(-time.Duration(*seconds) * time.Second)
	}
	if text := q.Get("sinceTime"); text != "" {
		if o.Since, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return nil, fmt.Errorf("sinceTime: %w", err)
		}
	}
	return o, nil
}

// statusOnly is what the log reader needs of a runtime: to know when the
// container has ended.
type statusOnly struct {
	internalapi.RuntimeService
	runtime cri.Runtime
}

// ContainerStatus is that of a container that has ended also if it is gone since:
// what it wrote has been read then.
func (s statusOnly) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	resp, err := s.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
	if cri.IsNotFound(err) {
		return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: id, State: runtimeapi.ContainerState_CONTAINER_EXITED}}, nil
	}
	return resp, err
}
