package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"podstead/agent/client"
)

func imageCommand(opt *options) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Pull, load, save, list and remove images"}
	cmd.AddCommand(imagePull(opt), imageLoad(opt), imageSave(opt), imageList(opt), imageRemove(opt))
	return cmd
}

func imagePull(opt *options) *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image from its registry",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := client.PullRequest{Image: args[0]}
			if creds != "" {
				var ok bool
				if req.Username, req.Password, ok = strings.Cut(creds, ":"); !ok {
					return fmt.Errorf("--creds must be USER:PASSWORD")
				}
			}
			c := opt.client()
			defer c.Close()
			show := newProgress(cmd.ErrOrStderr())
			id, err := c.PullImage(cmd.Context(), req, show.update)
			show.end()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), id)
			return nil
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "", "`USER:PASSWORD` for the registry")
	return cmd
}

// progress keeps one line of a terminal up to date; elsewhere it prints a line
// per stage.
type progress struct {
	out      io.Writer
	terminal bool
	stage    string
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{out: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

func (p *progress) update(u client.PullProgress) {
	var done, total, rate int64
	finished := 0
	for _, l := range u.Layers {
		done, total, rate = done+l.Bytes, total+l.Total, rate+l.BytesPerSecond
		if l.Stage == "done" || l.Stage == "shared" {
			finished++
		}
	}
	line := fmt.Sprintf("%s: %s", u.Ref, u.Stage)
	if len(u.Layers) > 0 {
		line += fmt.Sprintf(", %d of %d layers, %s of %s", finished, len(u.Layers), size(uint64(done)), size(uint64(total)))
		if rate > 0 {
			line += fmt.Sprintf(", %s/s", size(uint64(rate)))
		}
	}
	switch {
	case p.terminal:
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
	case u.Stage != p.stage:
		fmt.Fprintln(p.out, line)
	}
	p.stage = u.Stage
}

func (p *progress) end() {
	if p.terminal && p.stage != "" {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func imageLoad(opt *options) *cobra.Command {
	return &cobra.Command{
		Use:   "load FILE…",
		Short: "Load OCI or docker archives (- is standard input)",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := opt.client()
			defer c.Close()
			for _, path := range args {
				names, err := loadArchive(cmd, c, path)
				if err != nil {
					return fmt.Errorf("load %s: %w", path, err)
				}
				for _, n := range names {
					fmt.Fprintln(cmd.OutOrStdout(), "loaded", n)
				}
			}
			return nil
		},
	}
}

func loadArchive(cmd *cobra.Command, c *client.Client, path string) ([]string, error) {
	if path == "-" {
		return c.LoadImages(cmd.Context(), cmd.InOrStdin())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return c.LoadImages(cmd.Context(), f)
}

func imageSave(opt *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "save IMAGE… -o FILE",
		Short: "Write images as one OCI archive, which docker can load, too",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c := opt.client()
			defer c.Close()
			r, err := c.SaveImages(cmd.Context(), args...)
			if err != nil {
				return err
			}
			defer r.Close()
			if output == "-" {
				_, err = io.Copy(cmd.OutOrStdout(), r)
				return err
			}
			return writeWhole(output, r)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "`FILE` to write; - is standard output")
	return cmd
}

// writeWhole writes a file that is there whole or not at all.
func writeWhole(path string, r io.Reader) (err error) {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(part)
		}
	}()
	if _, err = io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(part, path)
}

func imageList(opt *options) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := opt.client()
			defer c.Close()
			list, err := c.Images(cmd.Context())
			if err != nil {
				return err
			}
			var rows [][]string
			for _, img := range list {
				pinned := ""
				if img.Pinned {
					pinned = "pinned"
				}
				names := img.RepoTags
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, name := range names {
					rows = append(rows, []string{name, shortID(img.ID), size(img.Size), pinned, strings.Join(img.UsedBy, ",")})
				}
			}
			return table(cmd.OutOrStdout(), []string{"IMAGE", "ID", "SIZE", "PINNED", "USED BY"}, rows)
		},
	}
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

func imageRemove(opt *options) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm IMAGE…",
		Aliases: []string{"remove"},
		Short:   "Remove images with all their names",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := opt.client()
			defer c.Close()
			for _, name := range args {
				if err := c.RemoveImage(cmd.Context(), name, force); err != nil {
					return fmt.Errorf("remove %s: %w", name, err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), "removed", name)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if pods use it, and without a word if it is not there")
	return cmd
}
