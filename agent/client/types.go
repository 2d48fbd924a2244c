// Package client is the node agent's API as its clients see it: the shapes that
// go over the wire and a Go client with a method per verb. The CLI uses it; the
// agent's server (agent/internal/api) uses its types.
//
// The API is HTTP and JSON on a unix socket that only root can open; there is no
// other authentication. Paths follow the Kubernetes API where it has the same
// thing, so that its client code (remotecommand, pod types) works unchanged:
//
//	GET    /healthz                                        "ok"
//	GET    /version                                        Version
//	GET    /api/v1/pods?namespace=                         v1.PodList
//	GET    /api/v1/namespaces/{ns}/pods/{name}             v1.Pod
//	DELETE /api/v1/namespaces/{ns}/pods/{name}?gracePeriodSeconds=
//	GET    /api/v1/namespaces/{ns}/pods/{name}/events      v1.EventList, oldest first
//	GET    /api/v1/namespaces/{ns}/pods/{name}/why         Why
//	GET    /api/v1/namespaces/{ns}/pods/{name}/flight      []FlightEntry, in the order in which they ended
//	GET    /api/v1/namespaces/{ns}/pods/{name}/log?container=&follow=&previous=&tailLines=&sinceSeconds=&sinceTime=&timestamps=&limitBytes=
//	POST   /api/v1/namespaces/{ns}/pods/{name}/ephemeralcontainers   v1.EphemeralContainer, added to the pod
//	POST   /api/v1/namespaces/{ns}/pods/{name}/conditions            v1.PodCondition, set in the pod's status
//	GET|POST /api/v1/namespaces/{ns}/pods/{name}/exec?container=&command=&command=&stdin=&stdout=&stderr=&tty=    upgraded
//	GET|POST /api/v1/namespaces/{ns}/pods/{name}/attach?container=&stdin=&stdout=&stderr=&tty=                    upgraded
//	GET|POST /api/v1/namespaces/{ns}/pods/{name}/portforward?ports=                                              upgraded
//	GET    /api/v1/nodes                                   v1.NodeList, of this node
//	GET    /api/v1/nodes/{name}                            v1.Node
//	GET    /api/v1/nodes/{name}/events                     v1.EventList, oldest first
//	GET    /stats/summary?only_cpu_and_memory=             the kubelet's stats.Summary (k8s.io/kubelet/pkg/apis/stats/v1alpha1)
//	POST   /shutdown?cancel=                               ends all pods, those of the highest priority last, and starts none
//	POST   /apply                YAML or JSON documents → ApplyResult
//	POST   /delete?gracePeriodSeconds=   YAML or JSON documents → ApplyResult
//	GET    /watch?namespace=&name=       stream of Change, a JSON object a line
//	GET    /problems                     []Problem: manifests that could not be used, an image disk that is full
//	GET    /images                       []Image
//	POST   /images/pull                  PullRequest → stream of PullUpdate, one a line
//	POST   /images/load                  archive → LoadResult
//	GET    /images/save?name=&name=      archive
//	DELETE /images?name=&force=          one that pods use goes by force only
//
// Errors are metav1.Status objects with the HTTP code that fits; the client
// turns them into *apierrors.StatusError, so apierrors.IsNotFound works.
package client

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Annotations that the agent puts on the pods it returns.
const (
	// AnnotationSource is where a pod comes from: "file" or "api".
	AnnotationSource = "kubernetes.io/config.source"
	// AnnotationManifest is the file that defines a pod of source "file".
	AnnotationManifest = "podstead.io/manifest"
)

// Version tells what answers.
type Version struct {
	Version        string `json:"version"`
	Node           string `json:"node"`
	Runtime        string `json:"runtime"` // name of the container runtime
	RuntimeVersion string `json:"runtimeVersion"`
}

// Actions on an object.
const (
	Created    = "created"
	Configured = "configured"
	Unchanged  = "unchanged"
	Deleted    = "deleted"
	NotFound   = "not found"
)

// ApplyResult tells what became of each object of a request, in its order. An
// error in one object refuses the whole request and nothing is changed.
type ApplyResult struct {
	Objects []ApplyObject `json:"objects"`
}

// ApplyObject is the outcome for one object.
type ApplyObject struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Action    string `json:"action"`
	// Warnings name the fields that are accepted and have no effect here.
	Warnings []string `json:"warnings,omitempty"`
}

// Kinds of Change.
const (
	Added    = "ADDED"
	Modified = "MODIFIED"
	Gone     = "DELETED"
	// Synced follows the changes that describe what was there when the watch
	// began; its Pod is nil.
	Synced = "SYNCED"
)

// Change is one element of a watch.
type Change struct {
	Type string      `json:"type"`
	Pod  *corev1.Pod `json:"pod,omitempty"`
	// Event is set in a Modified change that reports an event of the pod.
	Event *corev1.Event `json:"event,omitempty"`
}

// Problem is a manifest, or a document of one, that could not be used.
type Problem struct {
	Source  string    `json:"source"` // file name, "api" or "images"
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
	// Kept is true if an earlier good version of the file stays in force.
	Kept bool `json:"kept,omitempty"`
}

// Why explains the state of a pod: what it is doing now, and what it waits for.
type Why struct {
	Stage string    `json:"stage"` // e.g. "pulling image", "back-off", "running"
	Since time.Time `json:"since"`
	// Waiting has an entry for everything that keeps the pod from being ready.
	Waiting []Wait `json:"waiting,omitempty"`
	Next    string `json:"next,omitempty"` // what happens next, e.g. "restart of web at 12:03:04"
}

// Wait is one reason why a pod is not ready.
type Wait struct {
	Container string    `json:"container,omitempty"`
	Reason    string    `json:"reason"` // as in a container's waiting state
	Message   string    `json:"message,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Until     time.Time `json:"until,omitzero"` // when it is tried again, if that is known
}

// FlightEntry is something that was done for a pod, or happened to it.
type FlightEntry struct {
	At        time.Time     `json:"at"`
	Took      time.Duration `json:"took,omitempty"` // in nanoseconds
	Kind      string        `json:"kind"`
	What      string        `json:"what"` // "create sandbox", "RunPodSandbox", "ready"
	Container string        `json:"container,omitempty"`
	Error     string        `json:"error,omitempty"`
}

// Kinds of FlightEntry.
const (
	FlightStep = "step" // of the agent
	FlightCall = "call" // of the runtime, as part of a step
	FlightNews = "news" // what happened
)

// Image is an image of the node.
type Image struct {
	ID          string   `json:"id"`
	RepoTags    []string `json:"repoTags,omitempty"`
	RepoDigests []string `json:"repoDigests,omitempty"`
	Size        uint64   `json:"size"`
	Pinned      bool     `json:"pinned,omitempty"`
	User        string   `json:"user,omitempty"`
	// UsedBy names the pods ("namespace/name") whose containers use it.
	UsedBy []string `json:"usedBy,omitempty"`
}

// PullRequest asks for an image.
type PullRequest struct {
	Image string `json:"image"`
	// Username and Password, or Auth (base64 of "user:password"), or nothing.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	Auth     string `json:"auth,omitempty"`
}

// PullUpdate is one element of the answer to a PullRequest: any number of
// progress reports, then one with Done or Error.
type PullUpdate struct {
	Progress *PullProgress `json:"progress,omitempty"`
	Done     string        `json:"done,omitempty"` // the image's ID
	Error    string        `json:"error,omitempty"`
}

// PullProgress is the state of a pull under way.
type PullProgress struct {
	Ref     string          `json:"ref"`
	Host    string          `json:"host,omitempty"` // that was asked last, a mirror maybe
	Stage   string          `json:"stage"`          // resolving, fetching, unpacking, syncing
	Started time.Time       `json:"started"`
	Layers  []LayerProgress `json:"layers,omitempty"`
}

// LayerProgress is the state of one layer of it.
type LayerProgress struct {
	Digest         string `json:"digest"`
	Stage          string `json:"stage"` // waiting, fetching, unpacking, done, shared
	Bytes          int64  `json:"bytes"`
	Total          int64  `json:"total"`
	Unpacked       int64  `json:"unpacked"`
	BytesPerSecond int64  `json:"bytesPerSecond"`
	Retries        int    `json:"retries,omitempty"`
}

// LoadResult names the images of a loaded archive.
type LoadResult struct {
	Images []string `json:"images"`
}
