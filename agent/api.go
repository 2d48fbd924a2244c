package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"podstead/agent/client"
	"podstead/agent/internal/api"
	"podstead/agent/internal/request"
	"podstead/agent/internal/source"
)

// healthTimeout is how soon the loop must turn for the agent to be healthy.
const healthTimeout = 10 * time.Second

// serve serves the API until stop is called, which waits for nothing: who
// follows a log or watches is cut off.
func (a *Agent) serve(ctx context.Context) (stop func()) {
	if a.cfg.Listener == nil {
		return func() {}
	}
	server := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelWarn),
	}
	a.wg.Go(func() {
		if err := server.Serve(a.cfg.Listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			a.cfg.Log.Error("API is not served any more", "error", err)
		}
	})
	return func() { server.Close() }
}

func (a *Agent) handler() http.Handler {
	var images api.Images
	if a.cfg.Images != nil {
		images = a.cfg.Images
	}
	return api.Handler(backend{a}, a.cfg.Runtime, images, a.cfg.Log)
}

// backend is the agent as its API sees it.
type backend struct{ a *Agent }

func (b backend) Healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	return b.a.do(ctx, func(context.Context) {})
}

func (b backend) Version() client.Version {
	n := b.a.node
	return client.Version{Version: b.a.cfg.Version, Node: b.a.cfg.NodeName, Runtime: n.runtimeName, RuntimeVersion: n.runtimeVersion}
}

func (b backend) Pods() []*corev1.Pod { return b.a.board.list() }

func (b backend) Pod(namespace, name string) (*corev1.Pod, client.Why, bool) {
	p, ok := b.a.board.get(namespace, name)
	if ok {
		p.why = b.a.explain(p, time.Now())
	}
	return p.pod, p.why, ok
}

func (b backend) Events(namespace, name string) []corev1.Event {
	return b.a.node.events.Of(namespace, name)
}

func (b backend) Flight(namespace, name string) []client.FlightEntry {
	p, _ := b.a.board.get(namespace, name)
	return p.flight.Entries()
}

func (b backend) Watch() ([]*corev1.Pod, <-chan client.Change, func()) { return b.a.board.watch() }

func (b backend) Problems(ctx context.Context) (list []client.Problem, err error) {
	list = []client.Problem{}
	err = b.a.do(ctx, func(context.Context) {
		for _, p := range b.a.wanted.Problems {
			list = append(list, client.Problem{Source: p.Source, Message: p.Message, Since: p.Since, Kept: p.Kept})
		}
	})
	if p := b.a.images.Problem(); p.Message != "" {
		list = append(list, client.Problem{Source: "images", Message: p.Message, Since: p.Since})
	}
	return append(list, b.a.evictor.problems()...), err
}

// Apply takes all objects of the manifests or none.
func (b backend) Apply(ctx context.Context, manifests []byte) (result client.ApplyResult, err error) {
	objects, warnings, err := b.a.decoder.Decode(manifests)
	if err != nil {
		return result, apierrors.NewBadRequest(err.Error())
	}
	doErr := b.a.do(ctx, func(loop context.Context) { result, err = b.a.apply(loop, objects) })
	if len(warnings) > 0 && len(result.Objects) > 0 {
		result.Objects[0].Warnings = append(result.Objects[0].Warnings, warnings...)
	}
	return result, errors.Join(doErr, err)
}

func (a *Agent) apply(ctx context.Context, objects []source.Object) (result client.ApplyResult, err error) {
	for _, o := range objects {
		if file := a.definedBy(o); file != "" {
			return result, apierrors.NewConflict(resourceOf(o), o.Meta().Name, fmt.Errorf("%s is defined by the file %s; edit or remove the file", o.Key(), file))
		}
	}
	defer func() {
		a.merge()
		a.reconcile(ctx)
	}()
	for _, o := range objects {
		existed, changed, err := a.applied.Put(o)
		if err != nil {
			return result, err
		}
		action := client.Unchanged
		switch {
		case !existed:
			action = client.Created
		case changed:
			action = client.Configured
		}
		result.Objects = append(result.Objects, outcome(o, action))
	}
	return result, nil
}

func outcome(o source.Object, action string) client.ApplyObject {
	return client.ApplyObject{Kind: o.Kind(), Namespace: o.Meta().Namespace, Name: o.Meta().Name, Action: action, Warnings: o.Warnings}
}

// definedBy names the manifest file that defines an object, "" if none does.
func (a *Agent) definedBy(o source.Object) string {
	for _, f := range a.files {
		for _, have := range f.Objects {
			if have.Key() == o.Key() {
				return f.Path
			}
		}
	}
	return ""
}

// Delete removes the applied objects that manifests name.
func (b backend) Delete(ctx context.Context, manifests []byte, grace *time.Duration) (result client.ApplyResult, err error) {
	objects, _, err := b.a.decoder.Decode(manifests)
	if err != nil {
		return result, apierrors.NewBadRequest(err.Error())
	}
	doErr := b.a.do(ctx, func(loop context.Context) {
		for _, o := range objects {
			action := client.NotFound
			if _, ok := b.a.applied.Get(o.Key()); ok {
				action = client.Deleted
				if err = b.a.remove(o, grace); err != nil {
					break
				}
			}
			result.Objects = append(result.Objects, outcome(o, action))
		}
		b.a.merge()
		b.a.reconcile(loop)
	})
	return result, errors.Join(doErr, err)
}

// remove removes an applied object; a pod is given its grace.
func (a *Agent) remove(o source.Object, grace *time.Duration) error {
	if err := a.applied.Delete(o.Key()); err != nil {
		return err
	}
	if o.Pod != nil {
		if w := a.workers[string(o.Pod.UID)]; w != nil {
			w.end(grace)
		}
	}
	return nil
}

func (b backend) LogPath(pod *corev1.Pod, container string, restarts int32) string {
	return filepath.Join(b.a.node.request.LogDirectory(pod), request.LogPath(container, restarts))
}

func (b backend) Summary(ctx context.Context, cpuAndMemory bool) (*stats.Summary, error) {
	return b.a.figures.Summary(ctx, cpuAndMemory)
}

func (b backend) Shutdown(ctx context.Context, cancel bool) error {
	if cancel {
		return b.a.shutdownCancel(ctx)
	}
	return b.a.shutdown(ctx)
}

// Debug adds an ephemeral container to a pod.
func (b backend) Debug(ctx context.Context, namespace, name string, e corev1.EphemeralContainer) error {
	return b.ask(ctx, namespace, name, func(w *worker) error { return w.addDebug(e) })
}

// SetCondition sets a condition of a pod.
func (b backend) SetCondition(ctx context.Context, namespace, name string, c corev1.PodCondition) error {
	return b.ask(ctx, namespace, name, func(w *worker) error { return w.setCondition(c, time.Now()) })
}

// ask has a pod's worker do something and waits for it.
func (b backend) ask(ctx context.Context, namespace, name string, do func(*worker) error) error {
	p, ok := b.a.board.get(namespace, name)
	if !ok {
		return apierrors.NewNotFound(corev1.Resource("pods"), namespace+"/"+name)
	}
	var ended <-chan struct{}
	answer := make(chan error, 1)
	err := b.a.do(ctx, func(context.Context) {
		if w := b.a.workers[string(p.pod.UID)]; w != nil {
			ended = w.quit
			w.leave(func(box *box) { box.asked = append(box.asked, ask{do, answer}) })
		}
	})
	if err != nil {
		return err
	}
	if ended == nil {
		return apierrors.NewNotFound(corev1.Resource("pods"), namespace+"/"+name)
	}
	select {
	case err := <-answer:
		return err
	case <-ended:
		return apierrors.NewConflict(corev1.Resource("pods"), name, errPodEnds)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// DeletePod ends an applied pod, or hastens the end of one that is ending.
func (b backend) DeletePod(ctx context.Context, namespace, name string, grace *time.Duration) (err error) {
	doErr := b.a.do(ctx, func(loop context.Context) { err = b.a.deletePod(loop, namespace, name, grace) })
	return errors.Join(doErr, err)
}

func (a *Agent) deletePod(ctx context.Context, namespace, name string, grace *time.Duration) error {
	key := namespace + "/" + name
	if o, ok := a.applied.Get("Pod " + key); ok && a.wanted.Origin[key] == "" {
		if err := a.remove(o, grace); err != nil {
			return err
		}
		a.merge()
		a.reconcile(ctx)
		return nil
	}
	if file := a.wanted.Origin[key]; file != "" {
		return apierrors.NewConflict(corev1.Resource("pods"), name, fmt.Errorf("the pod is defined by the file %s; remove the file to end it", file))
	}
	p, ok := a.board.get(namespace, name)
	if !ok {
		return apierrors.NewNotFound(corev1.Resource("pods"), key)
	}
	if w := a.workers[string(p.pod.UID)]; w != nil {
		w.end(grace)
	}
	return nil
}

func resourceOf(o source.Object) schema.GroupResource {
	return corev1.Resource(map[string]string{"Pod": "pods", "ConfigMap": "configmaps", "Secret": "secrets",
		"PersistentVolume": "persistentvolumes", "PersistentVolumeClaim": "persistentvolumeclaims"}[o.Kind()])
}
