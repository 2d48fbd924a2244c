package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"podstead/oci/criu"
)

// CheckpointOptions is what a checkpoint is told.
type CheckpointOptions struct {
	// CRIU are the options that are its own; the directories of ImagePath and
	// WorkPath are opened, and what the container has from outside is found out.
	CRIU                criu.DumpOptions
	ImagePath, WorkPath string
	StatusFd            int // gets a byte when a lazy dump waits for its client
}

// Checkpoint writes a running or paused container's state to files. Without
// CRIU.LeaveRunning the container has stopped then; if it fails, it goes on.
func (r *Runtime) Checkpoint(ctx context.Context, id string, o CheckpointOptions) error {
	c, err := r.loadLocked(id)
	if err != nil {
		return err
	}
	defer c.unlock()
	if _, err := c.need("checkpoint", specs.StateRunning, statusPaused); err != nil {
		return err
	}
	if err := c.checkpoint(ctx, o); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	return nil
}

func (c *container) checkpoint(ctx context.Context, o CheckpointOptions) error {
	spec, err := c.spec()
	if err != nil {
		return err
	}
	if c.runtime.privilege != privileged {
		return errors.New("only root can checkpoint")
	}
	program, err := criu.Find()
	if err != nil {
		return err
	}
	closeDirs, err := openCheckpointDirs(&o.CRIU.Options, o.ImagePath, o.WorkPath, true)
	if err != nil {
		return err
	}
	defer closeDirs()
	o.CRIU.Pid, o.CRIU.FreezeCgroup = c.Pid, c.group().FreezerDir()
	if o.CRIU.PreDump {
		o.CRIU.LeaveRunning = true
	}
	o.CRIU.OrphanPtsMaster = spec.Process.Terminal
	if err := o.CRIU.DescribeDump(spec, c.Stdio); err != nil {
		return err
	}
	if o.StatusFd > 0 {
		status := os.NewFile(uintptr(o.StatusFd), "--status-fd")
		defer status.Close()
		o.CRIU.Notify = func(n criu.Notification) error {
			if n.Script != criu.StatusReady {
				return nil
			}
			_, err := status.Write([]byte{0})
			return errors.Join(err, status.Close())
		}
	}
	return criu.Dump(ctx, program, o.CRIU)
}

// openCheckpointDirs opens the directories of images and log.
func openCheckpointDirs(o *criu.Options, images, work string, create bool) (closeAll func(), err error) {
	if images == "" {
		images = "checkpoint"
	}
	if create {
		for _, dir := range []string{images, work} {
			if dir == "" {
				continue
			}
			if err := os.MkdirAll(dir, 0o700); err != nil { // what is in memory is nobody else's business
				return nil, err
			}
		}
	}
	if o.Images, err = os.Open(images); err != nil {
		return nil, fmt.Errorf("--image-path: %w", err)
	}
	if work == "" {
		return func() { o.Images.Close() }, nil
	}
	if o.Work, err = os.Open(work); err != nil {
		o.Images.Close()
		return nil, fmt.Errorf("--work-path: %w", err)
	}
	return func() { o.Images.Close(); o.Work.Close() }, nil
}

// criuFlags are those that checkpoint and restore have in common.
type criuFlags struct {
	options                   criu.Options
	imagePath, workPath, mode string
	emptyNS                   []string
}

func (f *criuFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.imagePath, "image-path", "", "directory of the image files (default: ./checkpoint)")
	flags.StringVar(&f.workPath, "work-path", "", "directory of log and statistics (default: that of the images)")
	flags.BoolVar(&f.options.TCPEstablished, "tcp-established", false, "keep open TCP connections")
	flags.BoolVar(&f.options.ExtUnixSockets, "ext-unix-sk", false, "allow unix sockets connected with others outside")
	flags.BoolVar(&f.options.ShellJob, "shell-job", false, "allow a session and terminal from outside")
	flags.BoolVar(&f.options.FileLocks, "file-locks", false, "keep file locks")
	flags.BoolVar(&f.options.LinkRemap, "link-remap", false, "give unlinked open files a name")
	flags.BoolVar(&f.options.AutoDedup, "auto-dedup", false, "drop memory from images that later ones have")
	flags.BoolVar(&f.options.LazyPages, "lazy-pages", false, "transfer memory when it is used")
	flags.StringVar(&f.mode, "manage-cgroups-mode", "", "ignore (the default: the processes go into the container's cgroup), soft, full or strict")
	flags.StringSliceVar(&f.emptyNS, "empty-ns", nil, "make this namespace empty: network")
}

func (f *criuFlags) parse() error {
	modes := map[string]criu.CgroupMode{
		"": criu.CgroupIgnore, "ignore": criu.CgroupIgnore, "soft": criu.CgroupSoft, "full": criu.CgroupFull, "strict": criu.CgroupStrict,
	}
	mode, ok := modes[f.mode]
	if !ok {
		return fmt.Errorf("--manage-cgroups-mode: %q is none of ignore, soft, full and strict", f.mode)
	}
	f.options.ManageCgroups = mode
	for _, ns := range f.emptyNS {
		if ns != "network" {
			return fmt.Errorf("--empty-ns: %q: only network can be made empty", ns)
		}
		f.options.EmptyNetwork = true
	}
	return nil
}

func checkpointCommand(cli *cli) *cobra.Command {
	var o CheckpointOptions
	var flags criuFlags
	var pageServer string
	cmd := &cobra.Command{
		Use:   "checkpoint CONTAINER",
		Short: "Write a running container's state to files, by CRIU",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.parse(); err != nil {
				return err
			}
			own := o.CRIU
			o.CRIU.Options, o.ImagePath, o.WorkPath = flags.options, flags.imagePath, flags.workPath
			o.CRIU.TCPSkipInFlight = own.TCPSkipInFlight
			var err error
			if o.CRIU.PageServer, err = parsePageServer(pageServer); err != nil {
				return err
			}
			if filepath.IsAbs(o.CRIU.Parent) {
				return errors.New("--parent-path: must be relative to the directory of the images")
			}
			return cli.runtime.Checkpoint(cmd.Context(), args[0], o)
		},
	}
	flags.add(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&o.CRIU.LeaveRunning, "leave-running", false, "let the container go on")
	f.BoolVar(&o.CRIU.TCPSkipInFlight, "tcp-skip-in-flight", false, "forget TCP connections that are being made")
	f.StringVar(&o.CRIU.Parent, "parent-path", "", "directory of the pre-dump before, relative to that of the images")
	f.BoolVar(&o.CRIU.PreDump, "pre-dump", false, "write memory alone, for a later checkpoint with --parent-path; the container goes on")
	f.StringVar(&pageServer, "page-server", "", "ADDRESS:PORT to send memory to")
	f.IntVar(&o.StatusFd, "status-fd", 0, "descriptor that gets a byte when a lazy dump waits for its client")
	return cmd
}

func parsePageServer(s string) (*criu.PageServer, error) {
	if s == "" {
		return nil, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return nil, fmt.Errorf("--page-server: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("--page-server: port: %w", err)
	}
	return &criu.PageServer{Address: host, Port: int(n)}, nil
}
