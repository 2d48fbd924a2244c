package kubeletapi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/agent/internal/observe"
	"podstead/cri"
)

// handler is the whole API.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	s.figures(mux)
	s.health(mux)
	if !s.Debugging {
		off := func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "Debug endpoints are disabled.", http.StatusMethodNotAllowed)
		}
		for _, p := range []string{"/run/", "/exec/", "/attach/", "/portForward/", "/containerLogs/", "/runningpods/", "/configz", "/logs/", "/debug/", "/checkpoint/"} {
			mux.HandleFunc(p, off)
		}
		return mux
	}
	for _, uid := range []string{"", "/{uid}"} {
		mux.HandleFunc("POST /run/{namespace}/{pod}"+uid+"/{container}", s.pod(s.run))
		for _, method := range []string{"GET ", "POST "} {
			mux.HandleFunc(method+"/exec/{namespace}/{pod}"+uid+"/{container}", s.pod(s.exec))
			mux.HandleFunc(method+"/attach/{namespace}/{pod}"+uid+"/{container}", s.pod(s.attach))
			mux.HandleFunc(method+"/portForward/{namespace}/{pod}"+uid, s.pod(s.portForward))
		}
	}
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.pod(s.logs))
	mux.HandleFunc("GET /runningpods/", s.runningPods)
	mux.HandleFunc("POST /checkpoint/{namespace}/{pod}/{container}", s.pod(s.checkpoint))
	mux.HandleFunc("GET /statusz", s.statusz)
	mux.HandleFunc("GET /flagz", s.flagz)
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"kubeletconfig": s.Configuration})
	})
	mux.HandleFunc("GET /allocatedPods", s.pods) // they are shown with what they were given
	if s.SystemLogs {
		mux.Handle("GET /logs/", s.nodeLogs())
	}
	if s.DebugFlags && s.SetVerbosity != nil {
		mux.HandleFunc("GET /debug/flags/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "/debug/flags/v (PUT)\n") })
		mux.HandleFunc("PUT /debug/flags/v", s.verbosity)
	}
	if s.Profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// readOnly is what anybody may see, if the port is asked for.
func (s *Server) readOnly() http.Handler {
	mux := http.NewServeMux()
	s.figures(mux)
	s.health(mux)
	return mux
}

// figures are pods, statistics and metrics.
func (s *Server) figures(mux *http.ServeMux) {
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /pods/", s.pods)
	mux.HandleFunc("GET /stats/summary", s.summary)
	scrape := func(path string, g prometheus.Gatherer) {
		mux.Handle("GET "+path, promhttp.HandlerFor(g, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	}
	mux.HandleFunc("GET /metrics", s.collect(func(r *http.Request) prometheus.Collector { return volumeCollector{s, r.Context()} }, s.Metrics.Registry))
	scrape("/metrics/probes", s.Metrics.Probes)
	scrape("/metrics/slis", s.Metrics.SLIs)
	mux.HandleFunc("DELETE /metrics/slis", func(w http.ResponseWriter, _ *http.Request) {
		s.Metrics.ResetHealth()
		_, _ = io.WriteString(w, "metrics reset\n")
	})
	mux.HandleFunc("GET /metrics/resource", s.collect(func(r *http.Request) prometheus.Collector { return resourceCollector{s, r.Context()} }))
	mux.HandleFunc("GET /metrics/cadvisor", s.collect(func(r *http.Request) prometheus.Collector { return runtimeCollector{s, r.Context()} }))
}

// collect gathers anew for each request, beside what others have gathered.
func (s *Server) collect(c func(*http.Request) prometheus.Collector, others ...prometheus.Gatherer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		registry := prometheus.NewRegistry()
		registry.MustRegister(c(r))
		promhttp.HandlerFor(append(prometheus.Gatherers{registry}, others...), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, r)
	}
}

func (s *Server) healthMux() http.Handler {
	mux := http.NewServeMux()
	s.health(mux)
	return mux
}

func (s *Server) health(mux *http.ServeMux) {
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }
	turns := func(w http.ResponseWriter, r *http.Request) {
		err := s.Healthy(r.Context())
		s.Metrics.Health("syncloop", err == nil)
		if err != nil {
			http.Error(w, "healthz check failed: syncloop: "+err.Error(), http.StatusInternalServerError)
			return
		}
		ok(w, r)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		s.Metrics.Health("ping", true)
		s.Metrics.Health("log", true)
		turns(w, r)
	})
	mux.HandleFunc("GET /healthz/syncloop", turns)
	mux.HandleFunc("GET /healthz/ping", ok)
	mux.HandleFunc("GET /healthz/log", ok)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func podList() corev1.PodList {
	return corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := podList()
	for _, p := range s.Pods() {
		list.Items = append(list.Items, *p)
	}
	reply(w, list)
}

// verbosity changes how much is logged, as klog's flag -v does.
func (s *Server) verbosity(w http.ResponseWriter, r *http.Request) {
	const most = 100
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	n, numberErr := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil || numberErr != nil || n < 0 || n > most {
		http.Error(w, fmt.Sprintf("failed to set klog.logging.verbosity: %q is not a number between 0 and %d", body, most), http.StatusBadRequest)
		return
	}
	s.SetVerbosity(n)
	s.Log.Info("the log's verbosity was changed", "v", n, "from", r.RemoteAddr)
	fmt.Fprintf(w, "successfully set klog.logging.verbosity to %d\n", n)
}

// runningPods are those that the runtime has, with no more than it knows.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	resp, err := s.Runtime.ListContainers(r.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}, LabelSelector: s.Labels}})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	containers := map[string][]corev1.Container{}
	for _, c := range resp.Containers {
		uid := c.Labels[observe.LabelPodUID]
		containers[uid] = append(containers[uid], corev1.Container{Name: c.GetMetadata().GetName(), Image: c.GetImage().GetImage()})
	}
	list := podList()
	for _, p := range s.Pods() {
		if have := containers[string(p.UID)]; have != nil {
			list.Items = append(list.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID},
				Spec: corev1.PodSpec{Containers: have}})
		}
	}
	reply(w, list)
}

func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	only, _ := strconv.ParseBool(r.URL.Query().Get("only_cpu_and_memory"))
	sum, err := s.Stats.Summary(r.Context(), only)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, sum)
}

// pod finds the pod that a request's path names, and checks its UID.
func (s *Server) pod(h func(http.ResponseWriter, *http.Request, *corev1.Pod)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, p := range s.Pods() {
			if p.Namespace == r.PathValue("namespace") && p.Name == r.PathValue("pod") {
				if uid := r.PathValue("uid"); uid == "" || uid == string(p.UID) {
					h(w, r, p)
					return
				}
			}
		}
		http.Error(w, "pod does not exist", http.StatusNotFound)
	}
}

// forward has the agent's own API answer, at a pod's path.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, p *corev1.Pod, what string, query url.Values) {
	to := r.Clone(r.Context())
	to.URL.Path = "/api/v1/namespaces/" + p.Namespace + "/pods/" + p.Name + "/" + what
	to.URL.RawPath, to.URL.RawQuery, to.Pattern = "", query.Encode(), ""
	s.API.ServeHTTP(w, to)
}

// streams translates the kubelet's parameters of exec and attach.
func streams(r *http.Request) url.Values {
	from, to := r.URL.Query(), url.Values{"container": {r.PathValue("container")}}
	for theirs, ours := range map[string]string{"input": "stdin", "output": "stdout", "error": "stderr", "tty": "tty"} {
		if yes, _ := strconv.ParseBool(from.Get(theirs)); yes {
			to.Set(ours, "true")
		}
	}
	return to
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, p *corev1.Pod) {
	q := streams(r)
	q["command"] = r.URL.Query()["command"]
	s.forward(w, r, p, "exec", q)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, p *corev1.Pod) {
	s.forward(w, r, p, "attach", streams(r))
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request, p *corev1.Pod) {
	q := url.Values{}
	if ports := r.URL.Query()["port"]; len(ports) > 0 {
		q["ports"] = ports
	}
	s.forward(w, r, p, "portforward", q)
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request, p *corev1.Pod) {
	q := r.URL.Query()
	q.Set("container", r.PathValue("container"))
	s.forward(w, r, p, "log", q)
}

// containerID finds a container of a pod by name.
func containerID(p *corev1.Pod, name string) (id string, ok bool) {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				_, id, _ = strings.Cut(list[i].ContainerID, "://")
				return id, list[i].State.Running != nil
			}
		}
	}
	return "", false
}

// run runs a command and answers with what it wrote.
func (s *Server) run(w http.ResponseWriter, r *http.Request, p *corev1.Pod) {
	id, running := containerID(p, r.PathValue("container"))
	if !running {
		http.Error(w, "container not found (\""+r.PathValue("container")+"\")", http.StatusNotFound)
		return
	}
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	resp, err := s.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: strings.Fields(r.Form.Get("cmd")), Timeout: 0})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	out := string(resp.Stdout) + string(resp.Stderr)
	if resp.ExitCode != 0 {
		http.Error(w, fmt.Sprintf("%scommand terminated with exit code %d", out, resp.ExitCode), http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, out)
}

// checkpoint writes an archive below the agent's directory and names it, as the
// kubelet's ContainerCheckpoint does.
func (s *Server) checkpoint(w http.ResponseWriter, r *http.Request, p *corev1.Pod) {
	name := r.PathValue("container")
	id, running := containerID(p, name)
	if !running {
		http.Error(w, "container "+name+" is not running", http.StatusNotFound)
		return
	}
	timeout := int64(0)
	if text := r.URL.Query().Get("timeout"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "timeout: "+strconv.Quote(text)+" is not a number of seconds", http.StatusBadRequest)
			return
		}
		timeout = n
	}
	c, ok := s.Runtime.(cri.Checkpoints)
	if !ok {
		http.Error(w, "the runtime makes no checkpoints", http.StatusNotImplemented)
		return
	}
	file := fmt.Sprintf("checkpoint-%s_%s-%s-%s.tar", p.Name, p.Namespace, name, time.Now().Format(time.RFC3339Nano))
	location := filepath.Join(s.Checkpoints, file)
	err := os.MkdirAll(s.Checkpoints, 0o700)
	if err == nil {
		_, err = c.CheckpointContainer(r.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: timeout})
	}
	if err != nil {
		http.Error(w, "checkpointing of "+p.Namespace+"/"+p.Name+"/"+name+" failed ("+err.Error()+")", http.StatusInternalServerError)
		return
	}
	reply(w, map[string][]string{"items": {location}})
}
