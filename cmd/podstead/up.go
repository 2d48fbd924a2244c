package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
)

// up is one run of the command.
type up struct {
	*options
	files    []string
	archives []string
	config   string
	detach   bool
	timeout  time.Duration

	stdin       io.Reader
	out, errOut io.Writer
}

func upCommand(opt *options) *cobra.Command {
	u := up{options: opt}
	cmd := &cobra.Command{
		Use:   "up -f FILE…|-f DIR",
		Short: "Run the pods of manifests, here in the foreground or detached",
		Long: `Run the pods of manifests. If no node runs for this run directory, one is
started, and ends when its last pod does. In the foreground, progress and logs
are shown, and Ctrl-C takes down what the manifests brought up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u.stdin, u.out, u.errOut = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			return u.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&u.files, "filename", "f", nil, "`FILE` or directory of manifests; - is standard input; may be repeated")
	f.StringArrayVar(&u.archives, "load", nil, "load the images of this `ARCHIVE` first; may be repeated")
	f.StringVar(&u.config, "engine-config", "", "the engine's configuration `FILE`, if a node has to be started")
	f.BoolVarP(&u.detach, "detach", "d", false, "return when the pods are ready, and leave them running")
	f.DurationVar(&u.timeout, "timeout", 5*time.Minute, "how long to wait for the pods with --detach")
	return cmd
}

func (u *up) run(ctx context.Context) (err error) {
	manifests, err := readManifests(u.files, u.stdin)
	if err != nil {
		return err
	}
	if err := u.prepare(); err != nil {
		return err
	}
	c := u.client()
	defer c.Close()
	node, err := u.ensureNode(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.release(u.detach && err == nil)) }()
	if err := u.load(ctx, c); err != nil {
		return err
	}
	result, err := c.Apply(ctx, manifests)
	if err != nil {
		return err
	}
	pods := u.report(result)
	if len(pods) == 0 {
		return nil
	}
	if u.detach {
		return u.awaitReady(ctx, c, pods)
	}
	logs := newLogStreams(u, c)
	defer logs.close()
	followErr := u.follow(ctx, c, pods, logs)
	return errors.Join(followErr, u.takeDown(ctx, c, manifests, pods, logs))
}

func (u *up) load(ctx context.Context, c *client.Client) error {
	for _, path := range u.archives {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		start := time.Now()
		names, err := c.LoadImages(ctx, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
		for _, n := range names {
			fmt.Fprintf(u.out, "image %s loaded (%s)\n", n, took(start))
		}
	}
	return nil
}

func took(start time.Time) time.Duration { return time.Since(start).Round(time.Millisecond) }

// podKey names a pod on the node.
type podKey struct{ namespace, name string }

func (k podKey) String() string {
	if k.namespace == defaultNamespace {
		return k.name
	}
	return k.namespace + "/" + k.name
}

func keyOf(p *corev1.Pod) podKey { return podKey{p.Namespace, p.Name} }

// report prints what became of each object and returns the pods.
func (u *up) report(result client.ApplyResult) map[podKey]bool {
	pods := map[podKey]bool{}
	for _, o := range result.Objects {
		key := podKey{o.Namespace, o.Name}
		fmt.Fprintf(u.out, "%s %s %s\n", o.Kind, key, o.Action)
		for _, w := range o.Warnings {
			fmt.Fprintf(u.errOut, "%s %s: warning: %s\n", o.Kind, key, w)
		}
		if o.Kind == "Pod" {
			pods[key] = true
		}
	}
	return pods
}

var errAllReady = errors.New("all pods are ready")

// awaitReady shows progress until every pod is ready or has done its work.
func (u *up) awaitReady(ctx context.Context, c *client.Client, pods map[podKey]bool) error {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	stages := newStages(u.out)
	waiting := map[podKey]bool{}
	for k := range pods {
		waiting[k] = true
	}
	err := c.Watch(ctx, "", "", func(change client.Change) error {
		if change.Pod == nil || !pods[keyOf(change.Pod)] {
			return nil
		}
		stages.update(change)
		if settled(change.Pod) {
			delete(waiting, keyOf(change.Pod))
		}
		if len(waiting) == 0 {
			return errAllReady
		}
		return nil
	})
	switch {
	case errors.Is(err, errAllReady):
		return nil
	case err == nil:
		return errors.New("the node went away")
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("after %s not ready yet (podstead describe pod tells why): %v", u.timeout, keys(waiting))
	}
	return err
}

func keys(m map[podKey]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k.String())
	}
	return out
}

// settled tells whether a pod is ready, or has ended.
func settled(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return true
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// follow shows progress, and the logs of what starts, until ctx ends (which is no
// error) or all pods have ended by themselves.
func (u *up) follow(ctx context.Context, c *client.Client, pods map[podKey]bool, logs *logStreams) error {
	stages := newStages(u.out)
	ended := map[podKey]bool{}
	err := c.Watch(ctx, "", "", func(change client.Change) error {
		p := change.Pod
		if p == nil || !pods[keyOf(p)] {
			return nil
		}
		stages.update(change)
		for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if s.ContainerID != "" && s.State.Waiting == nil {
				logs.add(keyOf(p), s)
			}
		}
		if change.Type == client.Gone || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			ended[keyOf(p)] = true
		}
		if len(ended) == len(pods) {
			return errAllEnded
		}
		return nil
	})
	switch {
	case errors.Is(err, errAllEnded), errors.Is(err, context.Canceled):
		return nil
	case err == nil:
		return errors.New("the node went away")
	}
	return err
}

var errAllEnded = errors.New("all pods have ended")

// takeDown deletes what was applied and waits for it, while the logs go on. A
// second Ctrl-C cuts the grace short.
func (u *up) takeDown(ctx context.Context, c *client.Client, manifests []byte, pods map[podKey]bool, logs *logStreams) error {
	ctx = context.WithoutCancel(ctx)
	fmt.Fprintf(u.out, "taking down %v (Ctrl-C again to force)\n", keys(pods))
	again, stop := notifyInterrupt()
	defer stop()
	start := time.Now()
	var grace *time.Duration // the pods' own
	if !logs.awaitOpen(again) {
		grace = new(time.Duration)
	}
	result, err := c.Delete(ctx, manifests, grace)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- awaitAllGone(ctx, c, result) }()
	select {
	case err := <-done:
		if err == nil {
			logs.drain()
			fmt.Fprintf(u.out, "all down (%s)\n", took(start))
		}
		return err
	case <-again:
	}
	var now time.Duration
	if _, err := c.Delete(ctx, manifests, &now); err != nil {
		return err
	}
	return <-done
}

func awaitAllGone(ctx context.Context, c *client.Client, result client.ApplyResult) error {
	for _, o := range result.Objects {
		if o.Kind != "Pod" {
			continue
		}
		if err := awaitGone(ctx, c, o.Namespace, o.Name); err != nil {
			return err
		}
	}
	return nil
}
