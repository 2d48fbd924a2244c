// Package api serves the agent's API, which package agent/client describes, on
// a unix socket. It translates requests into calls of a Backend, streams logs
// and watches, and connects exec, attach and port-forward to the runtime's
// streaming server. Access is by the socket's mode. It keeps no state.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"

	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent/client"
	"podstead/cri"
)

// maxBody bounds manifests; archives are streamed and not bounded.
const maxBody = 16 << 20

// Backend is the agent as the API needs it.
type Backend interface {
	// Healthy returns when the agent's loop has turned.
	Healthy(context.Context) error
	Version() client.Version
	Pods() []*corev1.Pod
	Pod(namespace, name string) (*corev1.Pod, client.Why, bool)
	Events(namespace, name string) []corev1.Event
	// Flight is what was recorded of a pod that there is.
	Flight(namespace, name string) []client.FlightEntry
	// Watch returns what is there and a channel of what follows, closed if the
	// reader is too slow.
	Watch() (now []*corev1.Pod, changes <-chan client.Change, stop func())
	Problems(context.Context) ([]client.Problem, error)
	Apply(ctx context.Context, manifests []byte) (client.ApplyResult, error)
	Delete(ctx context.Context, manifests []byte, grace *time.Duration) (client.ApplyResult, error)
	// LogPath is the log file of an instance of a container.
	LogPath(pod *corev1.Pod, container string, restarts int32) string
	Node(context.Context) *corev1.Node
	NodeEvents() []corev1.Event
	// Summary is what the node and its pods use, of cpu and memory alone or of all.
	Summary(ctx context.Context, cpuAndMemory bool) (*stats.Summary, error)
	// Shutdown ends all pods before the machine goes down, or lets them begin again.
	Shutdown(ctx context.Context, cancel bool) error
	// Debug adds an ephemeral container to a pod.
	Debug(ctx context.Context, namespace, name string, e corev1.EphemeralContainer) error
	// SetCondition sets a condition of a pod that is not the node's own.
	SetCondition(ctx context.Context, namespace, name string, c corev1.PodCondition) error
	DeletePod(ctx context.Context, namespace, name string, grace *time.Duration) error
}

// Images are the extras of a runtime at home.
type Images interface {
	Load(ctx context.Context, r io.Reader) (names []string, err error)
	Save(ctx context.Context, w io.Writer, names []string) error
	Pulls() []client.PullProgress
}

type server struct {
	backend Backend
	runtime cri.Runtime
	images  Images // may be nil
	log     *slog.Logger
}

// Handler serves the API. images may be nil.
func Handler(b Backend, r cri.Runtime, images Images, log *slog.Logger) http.Handler {
	s := &server{b, r, images, log}
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				fail(w, err)
			}
		})
	}
	const pod = "/api/v1/namespaces/{namespace}/pods/{name}"
	handle("GET /healthz", s.healthz)
	handle("GET /version", s.version)
	handle("GET /api/v1/pods", s.listPods)
	handle("GET "+pod, s.getPod)
	handle("DELETE "+pod, s.deletePod)
	handle("GET "+pod+"/events", s.podEvents)
	handle("GET "+pod+"/why", s.podWhy)
	handle("GET "+pod+"/flight", s.podFlight)
	handle("GET "+pod+"/log", s.podLog)
	handle("POST "+pod+"/ephemeralcontainers", s.debug)
	handle("POST "+pod+"/conditions", s.setCondition)
	handle(pod+"/exec", s.exec)
	handle(pod+"/attach", s.attach)
	handle(pod+"/portforward", s.portForward)
	handle("GET /api/v1/nodes", s.listNodes)
	handle("GET /api/v1/nodes/{name}", s.getNode)
	handle("GET /api/v1/nodes/{name}/events", s.nodeEvents)
	handle("GET /stats/summary", s.summary)
	handle("POST /shutdown", s.shutdown)
	handle("POST /apply", s.apply)
	handle("POST /delete", s.delete)
	handle("GET /watch", s.watch)
	handle("GET /problems", s.problems)
	handle("GET /images", s.listImages)
	handle("POST /images/pull", s.pullImage)
	handle("POST /images/load", s.loadImages)
	handle("GET /images/save", s.saveImages)
	handle("DELETE /images", s.removeImage)
	return mux
}

// fail answers with a Status object.
func fail(w http.ResponseWriter, err error) {
	var st apierrors.APIStatus
	if !errors.As(err, &st) {
		internal := apierrors.NewInternalError(err)
		internal.ErrStatus.Message = err.Error() // "Internal error occurred" before it would say nothing
		st = internal
	}
	status := st.Status()
	status.Kind, status.APIVersion = "Status", "v1"
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status)
}

func reply(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

func (s *server) healthz(w http.ResponseWriter, r *http.Request) error {
	if err := s.backend.Healthy(r.Context()); err != nil {
		return err
	}
	_, err := io.WriteString(w, "ok\n")
	return err
}

func (s *server) version(w http.ResponseWriter, r *http.Request) error {
	return reply(w, s.backend.Version())
}

func (s *server) listPods(w http.ResponseWriter, r *http.Request) error {
	namespace := r.URL.Query().Get("namespace")
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.backend.Pods() {
		if namespace == "" || p.Namespace == namespace {
			list.Items = append(list.Items, *p)
		}
	}
	return reply(w, list)
}

// pod finds the pod of a request.
func (s *server) pod(r *http.Request) (*corev1.Pod, client.Why, error) {
	namespace, name := r.PathValue("namespace"), r.PathValue("name")
	p, why, ok := s.backend.Pod(namespace, name)
	if !ok {
		return nil, why, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, namespace+"/"+name)
	}
	return p, why, nil
}

func (s *server) getPod(w http.ResponseWriter, r *http.Request) error {
	p, _, err := s.pod(r)
	if err != nil {
		return err
	}
	return reply(w, p)
}

func (s *server) deletePod(w http.ResponseWriter, r *http.Request) error {
	grace, err := gracePeriod(r)
	if err != nil {
		return err
	}
	if err := s.backend.DeletePod(r.Context(), r.PathValue("namespace"), r.PathValue("name"), grace); err != nil {
		return err
	}
	return done(w)
}

// debug takes an EphemeralContainer.
func (s *server) debug(w http.ResponseWriter, r *http.Request) error {
	var e corev1.EphemeralContainer
	if err := strict(w, r, "ephemeral container", &e); err != nil {
		return err
	}
	if err := s.backend.Debug(r.Context(), r.PathValue("namespace"), r.PathValue("name"), e); err != nil {
		return err
	}
	return done(w)
}

// setCondition takes a PodCondition.
func (s *server) setCondition(w http.ResponseWriter, r *http.Request) error {
	var c corev1.PodCondition
	if err := strict(w, r, "condition", &c); err != nil {
		return err
	}
	if err := s.backend.SetCondition(r.Context(), r.PathValue("namespace"), r.PathValue("name"), c); err != nil {
		return err
	}
	return done(w)
}

// strict decodes the JSON object of a request; an unknown field is an error.
func strict(w http.ResponseWriter, r *http.Request, what string, into any) error {
	data, err := body(w, r)
	if err != nil {
		return err
	}
	unknown, err := kjson.UnmarshalStrict(data, into)
	if err = errors.Join(append(unknown, err)...); err != nil {
		return apierrors.NewBadRequest(what + ": " + err.Error())
	}
	return nil
}

func done(w http.ResponseWriter) error {
	return reply(w, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
}

func gracePeriod(r *http.Request) (*time.Duration, error) {
	text := r.URL.Query().Get("gracePeriodSeconds")
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return nil, apierrors.NewBadRequest("gracePeriodSeconds: " + strconv.Quote(text) + " is not a number of seconds")
	}
	d := time.Duration(n) * time.Second
	return &d, nil
}

func (s *server) podEvents(w http.ResponseWriter, r *http.Request) error {
	list := corev1.EventList{TypeMeta: metav1.TypeMeta{Kind: "EventList", APIVersion: "v1"}}
	list.Items = s.backend.Events(r.PathValue("namespace"), r.PathValue("name"))
	if len(list.Items) == 0 {
		if _, _, err := s.pod(r); err != nil {
			return err
		}
	}
	return reply(w, list)
}

func (s *server) podWhy(w http.ResponseWriter, r *http.Request) error {
	pod, why, err := s.pod(r)
	if err != nil {
		return err
	}
	pulls := s.pulling(pod)
	why.Waiting = slices.DeleteFunc(why.Waiting, func(w client.Wait) bool { // a pull knows more of itself
		return strings.Contains(w.Message, ": pull ") && slices.ContainsFunc(pulls, func(p client.Wait) bool { return p.Container == w.Container })
	})
	why.Waiting = append(why.Waiting, pulls...)
	return reply(w, why)
}

// pulling tells how far the pulls are that a pod waits for.
func (s *server) pulling(pod *corev1.Pod) (out []client.Wait) {
	if s.images == nil {
		return nil
	}
	pulls := map[string]client.PullProgress{}
	for _, p := range s.images.Pulls() {
		pulls[normal(p.Ref)] = p
	}
	add := func(name, image string) {
		if p, ok := pulls[normal(image)]; ok {
			out = append(out, client.Wait{Container: name, Reason: "Pulling", Message: describePull(p), Since: p.Started})
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			add(c.Name, c.Image)
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		add(c.Name, c.Image)
	}
	return out
}

// normal is an image's name in full.
func normal(name string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return named.String()
}

// describePull tells what a pull is at: "fetching c.example/a:1: sha256:0123…
// 12.0 of 40.0 MiB, 3.1 MiB/s".
func describePull(p client.PullProgress) string {
	const mib = 1 << 20
	text := p.Stage + " " + p.Ref
	if p.Host != "" {
		text += " from " + p.Host
	}
	for _, l := range p.Layers {
		switch l.Stage {
		case "fetching", "unpacking":
			text += fmt.Sprintf(": %.19s… %s %.1f of %.1f MiB, %.1f MiB/s", l.Digest, l.Stage, float64(l.Bytes)/mib, float64(l.Total)/mib, float64(l.BytesPerSecond)/mib)
			if l.Retries > 0 {
				text += fmt.Sprintf(" (%d retries)", l.Retries)
			}
		}
	}
	return text
}

func (s *server) podFlight(w http.ResponseWriter, r *http.Request) error {
	pod, _, err := s.pod(r)
	if err != nil {
		return err
	}
	list := s.backend.Flight(pod.Namespace, pod.Name)
	if list == nil {
		list = []client.FlightEntry{}
	}
	return reply(w, list)
}

// body reads a request's.
func body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, apierrors.NewBadRequest("read request: " + err.Error())
	}
	return data, nil
}

func (s *server) apply(w http.ResponseWriter, r *http.Request) error {
	data, err := body(w, r)
	if err != nil {
		return err
	}
	result, err := s.backend.Apply(r.Context(), data)
	if err != nil {
		return err
	}
	return reply(w, result)
}

func (s *server) delete(w http.ResponseWriter, r *http.Request) error {
	data, err := body(w, r)
	if err != nil {
		return err
	}
	grace, err := gracePeriod(r)
	if err != nil {
		return err
	}
	result, err := s.backend.Delete(r.Context(), data, grace)
	if err != nil {
		return err
	}
	return reply(w, result)
}

func (s *server) problems(w http.ResponseWriter, r *http.Request) error {
	list, err := s.backend.Problems(r.Context())
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) watch(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	match := func(p *corev1.Pod) bool {
		return (q.Get("namespace") == "" || q.Get("namespace") == p.Namespace) && (q.Get("name") == "" || q.Get("name") == p.Name)
	}
	now, changes, stop := s.backend.Watch()
	defer stop()
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(flusher{w})
	for _, p := range now {
		if match(p) {
			if err := out.Encode(client.Change{Type: client.Added, Pod: p}); err != nil {
				return nil
			}
		}
	}
	if err := out.Encode(client.Change{Type: client.Synced}); err != nil {
		return nil
	}
	for {
		select {
		case <-r.Context().Done():
			return nil
		case c, ok := <-changes:
			if !ok {
				return nil // too slow: the client watches anew
			}
			if c.Pod == nil || match(c.Pod) {
				if err := out.Encode(c); err != nil {
					return nil // gone
				}
			}
		}
	}
}

// flusher sends each write at once.
type flusher struct{ w http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}
