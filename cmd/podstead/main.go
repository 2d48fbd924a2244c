// Command podstead is the node agent, the CRI runtime, the OCI runtime and
// their command line in one binary.
//
// Commands that serve (node, cri) run below podstead-supervisor, which restarts
// them when they die and keeps their sockets; this file and node.go build all
// boxes, top to bottom. Every other command is a client and has a file of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"podstead/ctl"
)

// version is set by the linker in releases.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	cmd := rootCommand()
	if filepath.Base(os.Args[0]) == "podstead-oci" {
		cmd = ociCommand()
	}
	err := cmd.ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	var exit exitError
	if errors.As(err, &exit) {
		os.Exit(int(exit))
	}
	fmt.Fprintln(os.Stderr, "podstead:", err)
	os.Exit(1)
}

// exitError ends the program with a status and no further word: that of a
// command that ran in a container, for example.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func rootCommand() *cobra.Command {
	var opt options
	root := &cobra.Command{
		Use:           "podstead",
		Short:         "Run pods: from a manifest down to execve",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Flags of ctl that its verbs have, too, belong to what they follow.
		TraverseChildren: true,
	}
	f := root.PersistentFlags()
	f.StringVar(&opt.stateDir, "state", defaultStateDir, "`DIR` of what outlives a reboot: images, pods, leases")
	f.StringVar(&opt.runDir, "run", defaultRunDir, "`DIR` of sockets, locks and run-time state, on tmpfs")
	f.StringVar(&opt.logLevel, "log-level", "info", "debug, info, warn or error")
	root.AddCommand(
		nodeCommand(&opt), criCommand(&opt), ociCommand(),
		upCommand(&opt), downCommand(&opt), checkCommand(),
		getCommand(&opt), describeCommand(&opt), whyCommand(&opt), logsCommand(&opt), execCommand(&opt), debugCommand(&opt), conditionCommand(&opt), topCommand(&opt), shutdownCommand(&opt), deleteCommand(&opt),
		imageCommand(&opt), shimCommand(), fileSystemCommand(), hostPathCommand(),
		ctl.Command(func() string { return "unix://" + opt.criSocket() }),
	)
	return root
}
