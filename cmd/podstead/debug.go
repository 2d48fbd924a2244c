package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"podstead/agent/client"
)

// debugging is what `podstead debug` was asked for; its flags are kubectl's.
type debugging struct {
	opt                        *options
	namespace                  string
	container                  corev1.EphemeralContainer
	pull, profile              string
	env                        []string
	argumentsOnly              bool
	interactive, attach, quiet bool
}

func debugCommand(opt *options) *cobra.Command {
	d := debugging{opt: opt}
	cmd := &cobra.Command{
		Use:   "debug POD --image=IMAGE [flags] [-- COMMAND [ARG…]]",
		Short: "Look into a running pod with a container of another image that joins it",
		Long: `Adds an ephemeral container to a running pod: it shares the pod's network, and with
--target the processes of one of its containers. It is never restarted, and stays in the
pod's status until the pod is deleted.`,
		Example: `  podstead debug web -it --image=busybox --target=app
  podstead debug web --image=busybox -c look -- ip addr && podstead logs web -c look`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("attach") {
				d.attach = d.interactive
			}
			// A shell that is fed by a pipe ends with it; one that somebody types into
			// can be attached to again.
			f, file := cmd.InOrStdin().(*os.File)
			d.container.StdinOnce = d.interactive && (!file || !term.IsTerminal(int(f.Fd())))
			if err := d.complete(args[1:]); err != nil {
				return err
			}
			return d.run(cmd, args[0])
		},
	}
	f := cmd.Flags()
	e := &d.container.EphemeralContainerCommon
	f.StringVarP(&d.namespace, "namespace", "n", defaultNamespace, "`NAMESPACE` of the pod")
	f.StringVar(&e.Image, "image", "", "`IMAGE` of the container")
	f.StringVar(&d.container.TargetContainerName, "target", "", "`CONTAINER` whose processes it is to see")
	f.StringVarP(&e.Name, "container", "c", "", "`NAME` of the container; a new one if not given")
	f.StringVar(&d.pull, "image-pull-policy", "", "Always, IfNotPresent or Never; by the image's tag if not given")
	f.StringArrayVar(&d.env, "env", nil, "`NAME=VALUE` in its environment")
	f.StringVar(&d.profile, "profile", "general", "what it may do: general (trace processes), baseline, restricted (no root), netadmin or sysadmin (privileged)")
	f.BoolVar(&d.argumentsOnly, "arguments-only", false, "what follows -- are arguments of the image's command")
	f.BoolVarP(&d.interactive, "stdin", "i", false, "keep its standard input open, and attach to it")
	f.BoolVarP(&e.TTY, "tty", "t", false, "give it a terminal")
	f.BoolVar(&d.attach, "attach", false, "attach to it; as --stdin if not given")
	f.BoolVarP(&d.quiet, "quiet", "q", false, "say nothing but what the container says")
	return cmd
}

// complete makes the container of the flags.
func (d *debugging) complete(command []string) error {
	e := &d.container.EphemeralContainerCommon
	if e.Image == "" {
		return errors.New("--image is required")
	}
	if e.TTY && !d.interactive {
		return errors.New("-t needs -i")
	}
	if e.Name == "" {
		e.Name = "debugger-" + rand.String(5)
	}
	e.ImagePullPolicy = corev1.PullPolicy(d.pull)
	e.Stdin = d.interactive
	for _, v := range d.env {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			return fmt.Errorf("--env %q is not NAME=VALUE", v)
		}
		e.Env = append(e.Env, corev1.EnvVar{Name: name, Value: value})
	}
	if d.argumentsOnly {
		e.Args = command
	} else {
		e.Command = command
	}
	var err error
	e.SecurityContext, err = debugProfile(d.profile)
	return err
}

// debugProfile is what kubectl's profiles of that name allow an ephemeral
// container.
func debugProfile(name string) (*corev1.SecurityContext, error) {
	yes, no := true, false
	switch name {
	case "general":
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}, nil
	case "baseline":
		return nil, nil
	case "restricted":
		return &corev1.SecurityContext{
			RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}, nil
	case "netadmin":
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}}}, nil
	case "sysadmin":
		return &corev1.SecurityContext{Privileged: &yes}, nil
	}
	return nil, fmt.Errorf("--profile %q is not general, baseline, restricted, netadmin or sysadmin", name)
}

func (d *debugging) run(cmd *cobra.Command, pod string) error {
	c := d.opt.client()
	defer c.Close()
	ctx, name := cmd.Context(), d.container.Name
	told := cmd.ErrOrStderr()
	if d.quiet {
		told = io.Discard
	}
	if err := c.Debug(ctx, d.namespace, pod, d.container); err != nil {
		return err
	}
	fmt.Fprintf(told, "container %s is added to pod %s\n", name, pod)
	if !d.attach {
		return nil
	}
	running, err := d.started(ctx, c, pod, told)
	if err != nil {
		return err
	}
	if !running {
		return d.said(ctx, c, pod, cmd.OutOrStdout())
	}
	o := client.ExecOptions{Container: name, TTY: d.container.TTY}
	o.Streams.Stdout = cmd.OutOrStdout()
	if d.interactive {
		o.Streams.Stdin = cmd.InOrStdin()
	}
	if !o.TTY {
		o.Streams.Stderr = cmd.ErrOrStderr()
	}
	fmt.Fprintln(told, "If you don't see a command prompt, try pressing enter.")
	err = withTerminal(&o, func() error { return c.Attach(ctx, d.namespace, pod, o) })
	if err == nil {
		return nil
	}
	if running, seen := d.started(ctx, c, pod, io.Discard); seen == nil && !running {
		return d.said(ctx, c, pod, cmd.OutOrStdout()) // it ended sooner
	}
	return err
}

// said prints the log of a container that has ended.
func (d *debugging) said(ctx context.Context, c *client.Client, pod string, out io.Writer) error {
	r, err := c.Logs(ctx, d.namespace, pod, client.LogOptions{Container: d.container.Name})
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(out, r)
	return err
}

// started waits until the container runs, or has ended. What keeps it from
// starting is told.
func (d *debugging) started(ctx context.Context, c *client.Client, pod string, told io.Writer) (running bool, err error) {
	found, said := errors.New("found"), ""
	err = c.Watch(ctx, d.namespace, pod, func(change client.Change) error {
		if change.Pod == nil {
			return nil
		}
		if change.Type == client.Gone {
			return fmt.Errorf("pod %s is gone", pod)
		}
		list := change.Pod.Status.EphemeralContainerStatuses
		i := slices.IndexFunc(list, func(s corev1.ContainerStatus) bool { return s.Name == d.container.Name })
		if i < 0 {
			return nil
		}
		state := list[i].State
		switch {
		case state.Running != nil:
			running = true
			return found
		case state.Terminated != nil:
			return found
		case state.Waiting != nil && state.Waiting.Message != "":
			if text := state.Waiting.Reason + ": " + state.Waiting.Message; text != said {
				fmt.Fprintln(told, text)
				said = text
			}
		}
		return nil
	})
	if errors.Is(err, found) {
		err = nil
	} else if err == nil {
		err = fmt.Errorf("the node ended before container %s started", d.container.Name)
	}
	return running, err
}
