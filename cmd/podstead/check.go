package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"podstead/agent"
)

// check is one run of the command.
type check struct {
	table       bool
	in          io.Reader
	out         io.Writer
	runs, fails int
}

func checkCommand() *cobra.Command {
	c := check{}
	cmd := &cobra.Command{
		Use:   "check FILE|DIR…",
		Short: "Tell what would become of manifests, without running them",
		Long: `Tell for each object of manifests whether it would run here, which of its
fields have no effect, or why it is refused, as of DIR and all below it.
Workloads are refused; what is said of their pods' template is told, too. Ends
with status 1 if anything is refused that is no workload.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.in, c.out = cmd.InOrStdin(), cmd.OutOrStdout()
			return c.run(args)
		},
	}
	cmd.Flags().BoolVar(&c.table, "table", false, "print a Markdown table")
	return cmd
}

func (c *check) run(paths []string) error {
	if c.table {
		fmt.Fprintln(c.out, "| manifest | object | result |\n|---|---|---|")
	}
	for _, path := range paths {
		files, err := manifestsBelow(path)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := c.file(path, f); err != nil {
				return err
			}
		}
	}
	if !c.table {
		fmt.Fprintf(c.out, "%d run, %d are refused\n", c.runs, c.fails)
	}
	if c.fails > 0 {
		return exitError(1)
	}
	return nil
}

func (c *check) file(root, path string) error {
	data, err := readManifest(path, c.in)
	if err != nil {
		return err
	}
	verdicts, err := agent.Check(data)
	if err != nil {
		return err
	}
	name := path
	if rel, err := filepath.Rel(root, path); err == nil && rel != "." && c.table {
		name = rel
	}
	for _, v := range verdicts {
		judged, prefix := v, ""
		if v.Template != nil {
			judged, prefix = *v.Template, "refused; its template as a Pod: "
		}
		if judged.Err != nil {
			c.fails++
		} else {
			c.runs++
		}
		c.line(name, strings.TrimSpace(v.Kind+" "+v.Name), prefix+result(judged))
	}
	return nil
}

func (c *check) line(file, object, text string) {
	text = strings.Join(strings.Fields(text), " ")
	if c.table {
		fmt.Fprintf(c.out, "| %s | %s | %s |\n", file, object, strings.ReplaceAll(text, "|", "\\|"))
		return
	}
	fmt.Fprintf(c.out, "%s: %s: %s\n", file, object, text)
}

func result(v agent.Verdict) string {
	if v.Err != nil {
		return "refused: " + v.Err.Error()
	}
	if len(v.Warnings) > 0 {
		return "runs; " + strings.Join(v.Warnings, "; ")
	}
	return "runs"
}

// manifestsBelow lists a file, or the manifests of a directory and all below it.
func manifestsBelow(path string) (files []string, err error) {
	if st, err := os.Stat(path); path == "-" || err != nil || !st.IsDir() {
		return []string{path}, err
	}
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)) {
			files = append(files, p)
		}
		return err
	})
	return files, err
}
