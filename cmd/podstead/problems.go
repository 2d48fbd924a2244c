package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"podstead/agent/client"
)

func areProblems(kind string) bool { return slices.Contains([]string{"problem", "problems"}, kind) }

// printProblems shows what is wrong with manifests and with the node.
func printProblems(cmd *cobra.Command, c *client.Client, output string) error {
	list, err := c.Problems(cmd.Context())
	if err != nil {
		return err
	}
	var names []string
	for _, p := range list {
		names = append(names, p.Source)
	}
	w := cmd.OutOrStdout()
	return printAs(w, output, list, names, func(bool) error {
		if len(list) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "no problems")
			return nil
		}
		var rows [][]string
		for _, p := range list {
			rows = append(rows, []string{p.Source, age(p.Since), problemText(p)})
		}
		return table(w, []string{"SOURCE", "SINCE", "PROBLEM"}, rows)
	})
}

func problemText(p client.Problem) string {
	text := strings.ReplaceAll(p.Message, "\n", "; ")
	if p.Kept {
		text += " (what was there before stays in force)"
	}
	return text
}

func describeProblems(w io.Writer, list []client.Problem) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w, "Problems:")
	for _, p := range list {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", age(p.Since), p.Source, problemText(p))
	}
}

// hint tells people who look at pods of what keeps others from being there.
func hint(cmd *cobra.Command, c *client.Client, pods int) {
	list, err := c.Problems(cmd.Context())
	switch {
	case err != nil:
	case len(list) == 1:
		fmt.Fprintln(cmd.ErrOrStderr(), "a problem with a manifest or the node: podstead get problems")
	case len(list) > 1:
		fmt.Fprintf(cmd.ErrOrStderr(), "%d problems with manifests or the node: podstead get problems\n", len(list))
	case pods == 0:
		fmt.Fprintln(cmd.ErrOrStderr(), "no pods")
	}
}
