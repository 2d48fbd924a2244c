package kubeletapi

import (
	"fmt"
	"maps"
	"mime"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// component is what the pages say they are of.
const component = "kubelet"

// statusz is the object of config.k8s.io that /statusz answers with, in v1alpha1
// and v1beta1 alike; flagz is that of /flagz.
type (
	statusz struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata,omitempty"`
		StartTime         metav1.Time `json:"startTime"`
		UptimeSeconds     int64       `json:"uptimeSeconds"`
		GoVersion         string      `json:"goVersion"`
		BinaryVersion     string      `json:"binaryVersion"`
		Paths             []string    `json:"paths"`
	}
	flagz struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata,omitempty"`
		Flags             map[string]string `json:"flags,omitempty"`
	}
)

func (s *Server) statusz(w http.ResponseWriter, r *http.Request) {
	began := s.Began.Truncate(time.Second)
	up := int64(max(time.Since(began), 0) / time.Second)
	paths := s.paths()
	zpage(w, r, "Statusz", func(t metav1.TypeMeta) any {
		return statusz{t, metav1.ObjectMeta{Name: component}, metav1.NewTime(began), up, runtime.Version(), s.Version, paths}
	}, fmt.Sprintf("\nStarted: %s\nUp: %d hr %02d min %02d sec\nGo version: %s\nBinary version: %s\n\nPaths: %s\n",
		began.Format(time.UnixDate), up/3600, up/60%60, up%60, runtime.Version(), s.Version, strings.Join(paths, " ")))
}

func (s *Server) flagz(w http.ResponseWriter, r *http.Request) {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.Flags)) {
		text.WriteString(name + "=" + s.Flags[name] + "\n")
	}
	zpage(w, r, "Flagz", func(t metav1.TypeMeta) any { return flagz{t, metav1.ObjectMeta{Name: component}, s.Flags} }, text.String())
}

// paths are those of the API that /statusz lists.
func (s *Server) paths() []string {
	list := []string{"/allocatedPods", "/attach", "/checkpoint", "/configz", "/containerLogs", "/exec", "/flagz", "/healthz", "/metrics", "/pods",
		"/portForward", "/run", "/runningpods", "/stats"}
	if s.SystemLogs {
		list = append(list, "/logs")
	}
	if s.Profiling || s.DebugFlags {
		list = append(list, "/debug")
	}
	slices.Sort(list)
	return list
}

// zpage answers with text or, to who asks for a version of the object, with that.
func zpage(w http.ResponseWriter, r *http.Request, kind string, object func(metav1.TypeMeta) any, text string) {
	version, ok := accepted(r.Header.Get("Accept"), kind)
	switch {
	case !ok:
		http.Error(w, "only text/plain and application/json;g=config.k8s.io;v=v1beta1;as="+kind+" can be had", http.StatusNotAcceptable)
	case version != "":
		if version == "v1alpha1" {
			w.Header().Set("Warning", `299 - "This version of the `+strings.ToLower(kind)+` endpoint is deprecated. Please use a newer version."`)
		}
		reply(w, object(metav1.TypeMeta{Kind: kind, APIVersion: "config.k8s.io/" + version}))
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "\n%s %s\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n%s",
			component, strings.ToLower(kind), text)
	}
}

// accepted finds what of an Accept header can be had: a version of the object, or
// "" for text.
func accepted(header, kind string) (version string, ok bool) {
	if strings.TrimSpace(header) == "" {
		return "", true
	}
	for part := range strings.SplitSeq(header, ",") {
		media, p, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		switch as, structured := p["as"]; {
		case structured && media == "application/json" && as == kind && p["g"] == "config.k8s.io" && (p["v"] == "v1beta1" || p["v"] == "v1alpha1"):
			return p["v"], true
		case !structured && (media == "text/plain" || media == "text/*" || media == "*/*"):
			return "", true
		}
	}
	return "", false
}
