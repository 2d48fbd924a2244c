package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Client talks to the agent that serves a unix socket. Safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client of the agent behind socket. It does not connect yet.
func New(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return Dial(ctx, socket)
		},
		DisableCompression: true,
	}}}
}

// Dial connects to the socket of an agent; remotecommand's transports want it.
func Dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func podPath(namespace, name, sub string) string {
	p := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods/" + url.PathEscape(name)
	if sub != "" {
		p += "/" + sub
	}
	return p
}

// Healthy asks whether the agent's loop is moving.
func (c *Client) Healthy(ctx context.Context) error {
	_, err := c.bytes(ctx, http.MethodGet, "/healthz", nil, nil)
	return err
}

// Version tells what answers.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	return v, c.json(ctx, http.MethodGet, "/version", nil, nil, &v)
}

// Pods lists pods with their status; namespace "" means all.
func (c *Client) Pods(ctx context.Context, namespace string) (*corev1.PodList, error) {
	q := url.Values{}
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	list := &corev1.PodList{}
	return list, c.json(ctx, http.MethodGet, "/api/v1/pods", q, nil, list)
}

// Pod returns one pod with its status.
func (c *Client) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	return pod, c.json(ctx, http.MethodGet, podPath(namespace, name, ""), nil, nil, pod)
}

// PodEvents returns what happened to a pod, oldest first.
func (c *Client) PodEvents(ctx context.Context, namespace, name string) (*corev1.EventList, error) {
	list := &corev1.EventList{}
	return list, c.json(ctx, http.MethodGet, podPath(namespace, name, "events"), nil, nil, list)
}

// Why explains the state of a pod.
func (c *Client) Why(ctx context.Context, namespace, name string) (Why, error) {
	var w Why
	return w, c.json(ctx, http.MethodGet, podPath(namespace, name, "why"), nil, nil, &w)
}

// Flight lists what was done for a pod and happened to it, as far as it is kept,
// in the order in which it ended.
func (c *Client) Flight(ctx context.Context, namespace, name string) ([]FlightEntry, error) {
	var list []FlightEntry
	return list, c.json(ctx, http.MethodGet, podPath(namespace, name, "flight"), nil, nil, &list)
}

// DeletePod ends a pod that was applied, gracefully; grace nil takes the pod's
// own period. It returns at once; watch to see the end. A pod that a manifest
// file defines is refused: remove the file.
func (c *Client) DeletePod(ctx context.Context, namespace, name string, grace *time.Duration) error {
	_, err := c.bytes(ctx, http.MethodDelete, podPath(namespace, name, ""), graceQuery(grace), nil)
	return err
}

// Nodes lists the node.
func (c *Client) Nodes(ctx context.Context) (*corev1.NodeList, error) {
	list := &corev1.NodeList{}
	return list, c.json(ctx, http.MethodGet, "/api/v1/nodes", nil, nil, list)
}

// NodeEvents returns what happened to the node, oldest first.
func (c *Client) NodeEvents(ctx context.Context, name string) (*corev1.EventList, error) {
	list := &corev1.EventList{}
	return list, c.json(ctx, http.MethodGet, "/api/v1/nodes/"+url.PathEscape(name)+"/events", nil, nil, list)
}

// Summary tells what the node and its pods use of cpu and memory.
func (c *Client) Summary(ctx context.Context) (*stats.Summary, error) {
	sum := &stats.Summary{}
	return sum, c.json(ctx, http.MethodGet, "/stats/summary", url.Values{"only_cpu_and_memory": {"true"}}, nil, sum)
}

// Shutdown ends all pods, as before the machine goes down, and returns when they
// have ended; they begin again after a reboot, or with cancel.
func (c *Client) Shutdown(ctx context.Context, cancel bool) error {
	_, err := c.bytes(ctx, http.MethodPost, "/shutdown", url.Values{"cancel": {strconv.FormatBool(cancel)}}, nil)
	return err
}

// Debug adds an ephemeral container to a pod; watch to see it start.
func (c *Client) Debug(ctx context.Context, namespace, name string, e corev1.EphemeralContainer) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = c.bytes(ctx, http.MethodPost, podPath(namespace, name, "ephemeralcontainers"), nil, bytes.NewReader(data))
	return err
}

// SetCondition sets a condition of a pod, e.g. one that its readiness gates name;
// the node's own are refused.
func (c *Client) SetCondition(ctx context.Context, namespace, name string, condition corev1.PodCondition) error {
	data, err := json.Marshal(condition)
	if err != nil {
		return err
	}
	_, err = c.bytes(ctx, http.MethodPost, podPath(namespace, name, "conditions"), nil, bytes.NewReader(data))
	return err
}

func graceQuery(grace *time.Duration) url.Values {
	q := url.Values{}
	if grace != nil {
		q.Set("gracePeriodSeconds", strconv.FormatInt(int64(grace.Round(time.Second)/time.Second), 10))
	}
	return q
}

// Apply posts manifests (YAML documents or JSON) and tells what became of each.
func (c *Client) Apply(ctx context.Context, manifests []byte) (ApplyResult, error) {
	var r ApplyResult
	return r, c.json(ctx, http.MethodPost, "/apply", nil, bytes.NewReader(manifests), &r)
}

// Delete removes the objects that manifests name.
func (c *Client) Delete(ctx context.Context, manifests []byte, grace *time.Duration) (ApplyResult, error) {
	var r ApplyResult
	return r, c.json(ctx, http.MethodPost, "/delete", graceQuery(grace), bytes.NewReader(manifests), &r)
}

// LogOptions select what of a container's log is read; a zero field means no limit.
type LogOptions struct {
	Container  string // may be empty in a pod of one container
	Follow     bool
	Previous   bool // of the container's last instance
	Timestamps bool
	TailLines  *int64
	LimitBytes *int64
	Since      time.Duration
	SinceTime  time.Time
}

func (o LogOptions) query() url.Values {
	q := url.Values{}
	set := func(key, value string, when bool) {
		if when {
			q.Set(key, value)
		}
	}
	set("container", o.Container, o.Container != "")
	set("follow", "true", o.Follow)
	set("previous", "true", o.Previous)
	set("timestamps", "true", o.Timestamps)
	if o.TailLines != nil {
		q.Set("tailLines", strconv.FormatInt(*o.TailLines, 10))
	}
	if o.LimitBytes != nil {
		q.Set("limitBytes", strconv.FormatInt(*o.LimitBytes, 10))
	}
	set("sinceSeconds", strconv.FormatInt(int64(o.Since/time.Second), 10), o.Since > 0)
	set("sinceTime", o.SinceTime.Format(time.RFC3339Nano), !o.SinceTime.IsZero())
	return q
}

// Logs streams a container's log; the caller closes it.
func (c *Client) Logs(ctx context.Context, namespace, name string, o LogOptions) (io.ReadCloser, error) {
	return c.stream(ctx, http.MethodGet, podPath(namespace, name, "log"), o.query(), nil)
}

// Watch calls yield for every pod there is, then for a Synced change, and then
// for each change, until ctx ends or yield returns an error, and returns that.
func (c *Client) Watch(ctx context.Context, namespace, name string, yield func(Change) error) error {
	q := url.Values{}
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	if name != "" {
		q.Set("name", name)
	}
	body, err := c.stream(ctx, http.MethodGet, "/watch", q, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	return lines(ctx, body, yield)
}

// Problems lists the manifests that could not be used, and what else is wrong
// with the node.
func (c *Client) Problems(ctx context.Context) ([]Problem, error) {
	var list []Problem
	return list, c.json(ctx, http.MethodGet, "/problems", nil, nil, &list)
}

// Images lists the node's images.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var list []Image
	return list, c.json(ctx, http.MethodGet, "/images", nil, nil, &list)
}

// PullImage pulls an image and returns its ID. progress, if not nil, is called
// as the pull goes on, where the runtime can tell.
func (c *Client) PullImage(ctx context.Context, r PullRequest, progress func(PullProgress)) (string, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	body, err := c.stream(ctx, http.MethodPost, "/images/pull", nil, bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	defer body.Close()
	id := ""
	err = lines(ctx, body, func(u PullUpdate) error {
		switch {
		case u.Error != "":
			return errors.New(u.Error)
		case u.Done != "":
			id = u.Done
		case u.Progress != nil && progress != nil:
			progress(*u.Progress)
		}
		return nil
	})
	if err == nil && id == "" {
		err = fmt.Errorf("pull %s: %w", r.Image, io.ErrUnexpectedEOF)
	}
	return id, err
}

// LoadImages imports an OCI or docker archive and returns the images' names.
func (c *Client) LoadImages(ctx context.Context, archive io.Reader) ([]string, error) {
	var r LoadResult
	return r.Images, c.json(ctx, http.MethodPost, "/images/load", nil, archive, &r)
}

// SaveImages writes images as one OCI archive; the caller closes it.
func (c *Client) SaveImages(ctx context.Context, names ...string) (io.ReadCloser, error) {
	return c.stream(ctx, http.MethodGet, "/images/save", url.Values{"name": names}, nil)
}

// RemoveImage removes an image with all its names. One that is missing or used by a
// pod is an error, unless force is set.
func (c *Client) RemoveImage(ctx context.Context, name string, force bool) error {
	_, err := c.bytes(ctx, http.MethodDelete, "/images", url.Values{"name": {name}, "force": {strconv.FormatBool(force)}}, nil)
	return err
}

// stream sends a request and returns the body of a good answer.
func (c *Client) stream(ctx context.Context, method, path string, q url.Values, body io.Reader) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "podstead", Path: path, RawQuery: q.Encode()}
	if unescaped, err := url.PathUnescape(path); err == nil {
		u.Path, u.RawPath = unescaped, path
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, fmt.Errorf("no agent answers on %s (is `podstead node` or `podstead up` running?): %w", c.socket, op.Err)
		}
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var st metav1.Status
	if json.Unmarshal(data, &st) == nil && st.Message != "" {
		return nil, &apierrors.StatusError{ErrStatus: st}
	}
	return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(data))
}

func (c *Client) bytes(ctx context.Context, method, path string, q url.Values, body io.Reader) ([]byte, error) {
	rc, err := c.stream(ctx, method, path, q, body)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func (c *Client) json(ctx context.Context, method, path string, q url.Values, body io.Reader, into any) error {
	data, err := c.bytes(ctx, method, path, q, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s %s: answer: %w", method, path, err)
	}
	return nil
}

// lines decodes a stream of JSON values.
func lines[T any](ctx context.Context, r io.Reader, yield func(T) error) error {
	dec := json.NewDecoder(r)
	for {
		var v T
		if err := dec.Decode(&v); err != nil {
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, io.EOF):
				return nil
			}
			return err
		}
		if err := yield(v); err != nil {
			return err
		}
	}
}
