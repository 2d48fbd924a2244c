package main

import (
	"context"
	"io"

	"podstead/agent"
	"podstead/agent/client"
	"podstead/image"
)

// archives offers the agent what the image store can do beyond CRI.
type archives struct{ store *image.Store }

var _ agent.ImageExtras = archives{}

// Load implements agent.ImageExtras.
func (a archives) Load(ctx context.Context, r io.Reader) ([]string, error) {
	loaded, err := a.store.Load(ctx, r)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, img := range loaded {
		if len(img.RepoTags) == 0 {
			names = append(names, img.ID)
		}
		names = append(names, img.RepoTags...)
	}
	return names, nil
}

// Save implements agent.ImageExtras.
func (a archives) Save(ctx context.Context, w io.Writer, names []string) error {
	return a.store.Save(ctx, w, names...)
}

// Pulls implements agent.ImageExtras.
func (a archives) Pulls() []client.PullProgress {
	var out []client.PullProgress
	for _, p := range a.store.Pulls() {
		progress := client.PullProgress{Ref: p.Ref, Host: p.Host, Stage: p.Stage, Started: p.Started}
		for _, l := range p.Layers {
			progress.Layers = append(progress.Layers, client.LayerProgress(l))
		}
		out = append(out, progress)
	}
	return out
}
