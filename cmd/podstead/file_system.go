package main

import (
	"github.com/spf13/cobra"

	"podstead/agent"
)

// fileSystemCommand tells the agent how full a file system is that may not answer.
// Nobody else calls it.
func fileSystemCommand() *cobra.Command {
	return &cobra.Command{
		Use: "file-system-usage PATH", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "Tell how full the file system at PATH is",
		RunE: func(cmd *cobra.Command, args []string) error {
			return agent.FileSystemUsage(cmd.OutOrStdout(), args[0])
		},
	}
}

// hostPathCommand tells the agent what is at a path that may not answer. Nobody
// else calls it.
func hostPathCommand() *cobra.Command {
	return &cobra.Command{
		Use: "host-path-check PATH TYPE", Hidden: true, Args: cobra.ExactArgs(2),
		Short: "Tell whether what is at PATH is of TYPE, and make it if it is to be made",
		RunE: func(cmd *cobra.Command, args []string) error {
			return agent.CheckHostPath(cmd.OutOrStdout(), args[0], args[1])
		},
	}
}
