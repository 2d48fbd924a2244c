package kubeletapi

import (
	"net/http"
	"strings"
)

// counted counts requests under the kubelet's labels; server is "readwrite" or
// "readonly".
func (s *Server) counted(server string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := root(r.URL.Path)
		long := path == "exec" || path == "attach" || path == "portForward" || path == "debug"
		defer s.Metrics.Request(method(r.Method), path, server, long)()
		h.ServeHTTP(w, r)
	})
}

// root is the part of a path that says what is asked for, "other" if that is
// nothing that could be: what strangers ask for must not become labels.
func root(path string) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "metrics":
		switch rest {
		case "cadvisor", "probes", "resource", "slis":
			return first + "/" + rest
		}
		return first
	case "pods", "runningpods", "allocatedPods", "stats", "healthz", "containerLogs", "exec", "attach", "portForward", "run", "checkpoint", "configz", "statusz", "flagz", "logs", "debug":
		return first
	}
	return "other"
}

func method(name string) string {
	switch name {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS":
		return name
	}
	return "other"
}
