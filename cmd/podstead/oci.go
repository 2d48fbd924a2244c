package main

import (
	"os"

	"github.com/spf13/cobra"

	"podstead/oci"
)

// ociCommand is "podstead oci": the OCI runtime's own command line, which has
// exit statuses and a log format of its own.
func ociCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "oci",
		Short:              "Run containers from OCI bundles, with runc's command line",
		DisableFlagParsing: true,
		Run:                func(_ *cobra.Command, args []string) { os.Exit(oci.Main(args)) },
	}
}
