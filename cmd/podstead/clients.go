package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"podstead/agent/client"
)

// What the client verbs share.

func (o *options) client() *client.Client { return client.New(o.agentSocket()) }

const defaultNamespace = "default"

// chooseContainer fills in the container of a pod that was not named: the first
// one, and says so if there are others.
func chooseContainer(ctx context.Context, c *client.Client, namespace, pod string, container *string, errOut io.Writer) error {
	if *container != "" {
		return nil
	}
	p, err := c.Pod(ctx, namespace, pod)
	if err != nil {
		return err
	}
	var names []string
	for _, spec := range p.Spec.Containers {
		names = append(names, spec.Name)
	}
	*container = names[0]
	if len(names) > 1 {
		fmt.Fprintf(errOut, "container %s of %s\n", names[0], strings.Join(names, ", "))
	}
	return nil
}

// readManifests reads files and directories (their *.yaml, *.yml and *.json,
// in order of name) as one stream of YAML documents; "-" is standard input.
func readManifests(paths []string, stdin io.Reader) ([]byte, error) {
	if len(paths) == 0 {
		return nil, errors.New("-f FILE or -f DIR is required")
	}
	var docs [][]byte
	for _, p := range paths {
		files, err := manifestFiles(p)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			data, err := readManifest(f, stdin)
			if err != nil {
				return nil, err
			}
			docs = append(docs, data)
		}
	}
	return bytes.Join(docs, []byte("\n---\n")), nil
}

func readManifest(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(path)
}

func manifestFiles(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s holds no *.yaml, *.yml or *.json file", path)
	}
	return files, nil
}

// table writes rows in aligned columns.
func table(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// age is a duration as people read it: 5s, 3m, 2h, 4d.
func age(since time.Time) string {
	if since.IsZero() {
		return "<none>"
	}
	switch d := time.Since(since); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// size is a number of bytes as people read it.
func size(n uint64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefix := float64(n)/unit, 0
	for value >= unit && prefix < 4 {
		value /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGTP"[prefix])
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
