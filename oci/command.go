package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"podstead/cgroup"
	"podstead/cgroup/systemd"
	"podstead/oci/launch"
	"podstead/oci/resctrl"
	"podstead/sys"
)

// defaultRoot is where containers are kept unless --root says otherwise.
const defaultRoot = "/run/podstead-oci"

// cli is what the commands share: the global flags, and what they come to.
type cli struct {
	root, log, logFormat string
	debug, systemd       bool
	rootless             string
	criu                 string
	// protect is sys.ReadOnlySelf; a test shows what happens without.
	protect func(args []string) error
	// The host's if nil; tests have their own.
	resctrl *resctrl.FS
	bus     []string // D-Bus addresses of systemd
	runtime *Runtime
	logFile *os.File
}

// exitError is the end of a process in the foreground, which is no error of
// the runtime's.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// execError is an exec that did not get its process to run, for which runc has
// an exit status of its own.
type execError struct{ error }

func (e execError) Unwrap() error { return e.error }

// Main executes a command line and returns the exit status. An error is
// printed to standard error and, with --log, to the log.
func Main(args []string) int {
	c := &cli{protect: sys.ReadOnlySelf}
	return c.main(args)
}

func (c *cli) main(args []string) int {
	if slices.ContainsFunc(args, forks) {
		// Before anything else is done, because it is done again then; package early
		// may have done it already. What goes wrong, setUp says.
		_ = c.protect(os.Args)
	}
	cmd := c.command(args)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	defer c.close()
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
	}
	if err == nil {
		return 0
	}
	if c.logFile != nil {
		c.runtime.Log.Error(err.Error())
	}
	fmt.Fprintf(os.Stderr, "podstead-oci: %v\n", err)
	if errors.As(err, &execError{}) {
		return 255
	}
	return 1
}

// verbs are the commands, by name.
func (c *cli) verbs() map[string]func(*cli) *cobra.Command {
	return map[string]func(*cli) *cobra.Command{
		"create": createCommand, "start": startCommand, "run": runCommand, "state": stateCommand, "kill": killCommand,
		"delete": deleteCommand, "list": listCommand, "ps": psCommand, "exec": execCommand, "pause": pauseCommand,
		"resume": resumeCommand, "update": updateCommand, "events": eventsCommand, "spec": specCommand,
		"features": featuresCommand, "checkpoint": checkpointCommand, "restore": restoreCommand,
	}
}

// command is the command line with those verbs that args mention, or with all if
// they mention none: to make them all takes longer than what some of them do.
func (c *cli) command(args []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "podstead-oci",
		Short:             "Run containers from OCI bundles, with runc's command line",
		SilenceUsage:      true,
		SilenceErrors:     true,
		Version:           Version,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return c.setUp(cmd) },
	}
	cmd.SetVersionTemplate("podstead-oci version 0\nspec: " + Version + "\ngo: " + runtime.Version() + "\n")
	f := cmd.PersistentFlags()
	f.StringVar(&c.root, "root", "", "directory of the containers' state, on a tmpfs (default: "+defaultRoot+", below $XDG_RUNTIME_DIR for users)")
	f.StringVar(&c.log, "log", "", "write the log to this file too")
	f.StringVar(&c.logFormat, "log-format", "text", "text or json")
	f.BoolVar(&c.debug, "debug", false, "log more")
	f.BoolVar(&c.systemd, "systemd-cgroup", false, "have systemd make the cgroups: linux.cgroupsPath is slice:prefix:name")
	f.StringVar(&c.rootless, "rootless", "auto", "do without what only root can: true, false, auto")
	f.StringVar(&c.criu, "criu", "", "obsolete, ignored")
	cmd.Flags().BoolP("version", "v", false, "print the version")
	verbs := c.verbs()
	for name, verb := range verbs {
		if slices.Contains(args, name) {
			cmd.AddCommand(verb(c))
		}
	}
	if !cmd.HasSubCommands() {
		for _, verb := range verbs {
			cmd.AddCommand(verb(c))
		}
	}
	return cmd
}

// forks tells whether a command makes processes that enter containers.
func forks(command string) bool {
	return slices.Contains([]string{"create", "run", "exec", "restore"}, command)
}

// setUp makes the Runtime of the global flags.
func (c *cli) setUp(cmd *cobra.Command) error {
	if forks(cmd.Name()) {
		if err := c.protect(os.Args); err != nil {
			return fmt.Errorf("protect the runtime's program: %w", err)
		}
	}
	c.runtime = &Runtime{Log: slog.New(slog.DiscardHandler), Resctrl: c.resctrl}
	if err := c.openLog(); err != nil {
		return err
	}
	var err error
	if c.runtime.privilege, err = detectPrivilege(c.rootless); err != nil {
		return err
	}
	if name := cmd.Name(); name == "features" || name == "spec" || name == "help" || name == "completion" {
		return nil
	}
	if c.root == "" {
		if c.root, err = defaultRootOf(c.runtime.privilege); err != nil {
			return err
		}
	}
	c.runtime.UseSystemd = c.systemd
	c.runtime.Systemd = systemd.New(systemd.Options{Park: launch.Park, Addresses: c.bus, User: c.runtime.privilege != privileged})
	if c.runtime.Root, err = filepath.Abs(c.root); err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	c.runtime.Cgroups, err = cgroup.Detect()
	return err
}

// openLog makes a log with the keys and level names that callers of runc parse.
func (c *cli) openLog() error {
	var out io.Writer = os.Stderr
	if c.log != "" {
		f, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("--log: %w", err)
		}
		c.logFile, out = f, f
	}
	opt := &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey && len(groups) == 0 {
			a.Value = slog.StringValue(strings.ToLower(strings.Replace(a.Value.String(), "WARN", "WARNING", 1)))
		}
		return a
	}}
	if c.debug {
		opt.Level = slog.LevelDebug
	}
	switch c.logFormat {
	case "json":
		c.runtime.Log = slog.New(slog.NewJSONHandler(out, opt))
	case "text":
		c.runtime.Log = slog.New(slog.NewTextHandler(out, opt))
	default:
		return fmt.Errorf("--log-format: %q is neither text nor json", c.logFormat)
	}
	return nil
}

func (c *cli) close() {
	if c.logFile != nil {
		c.logFile.Close()
	}
}
