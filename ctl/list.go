package ctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

// listFlags are common to the tables.
type listFlags struct {
	quiet  bool
	last   int
	format outputFlag
	id     string
	name   string
	state  string
	labels map[string]string
}

func (l *listFlags) add(cmd *cobra.Command) {
	l.format = asTable
	f := cmd.Flags()
	f.BoolVarP(&l.quiet, "quiet", "q", false, "print ids only")
	f.VarP(&l.format, "output", "o", "table, json or yaml")
	f.StringVar(&l.id, "id", "", "only the one with this `ID`")
	f.StringVar(&l.name, "name", "", "only those whose name matches this regular `EXPRESSION`")
	f.StringVarP(&l.state, "state", "s", "", "only those in this `STATE`")
	f.StringToStringVar(&l.labels, "label", nil, "only those with these labels, `KEY=VALUE`")
	f.IntVarP(&l.last, "last", "n", 0, "only the newest `NUMBER`")
}

// pick keeps items whose name matches, newest first, as many as are wanted.
func pick[T any](l *listFlags, items []T, name func(T) string, created func(T) int64) ([]T, error) {
	expression, err := regexp.Compile(l.name)
	if err != nil {
		return nil, fmt.Errorf("--name: %w", err)
	}
	items = slices.DeleteFunc(items, func(i T) bool { return !expression.MatchString(name(i)) })
	slices.SortStableFunc(items, func(a, b T) int { return cmp.Compare(created(b), created(a)) })
	if l.last > 0 && l.last < len(items) {
		items = items[:l.last]
	}
	return items, nil
}

func podsCommand(s *session) *cobra.Command {
	var l listFlags
	var namespace string
	cmd := &cobra.Command{
		Use: "pods", Short: "List pods", Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			filter := &runtimeapi.PodSandboxFilter{Id: l.id, LabelSelector: l.labels}
			if l.state != "" {
				n, ok := runtimeapi.PodSandboxState_value["SANDBOX_"+strings.ToUpper(l.state)]
				if !ok {
					return fmt.Errorf("--state %q is neither ready nor notready", l.state)
				}
				filter.State = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState(n)}
			}
			list, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter})
			if err != nil {
				return err
			}
			items := slices.DeleteFunc(list.Items, func(p *runtimeapi.PodSandbox) bool {
				return namespace != "" && p.GetMetadata().GetNamespace() != namespace
			})
			list.Items, err = pick(&l, items, func(p *runtimeapi.PodSandbox) string { return p.GetMetadata().GetName() }, (*runtimeapi.PodSandbox).GetCreatedAt)
			if err != nil {
				return err
			}
			return printPods(out, &l, list)
		}),
	}
	l.add(cmd)
	cmd.Flags().StringVar(&namespace, "namespace", "", "only those of this `NAMESPACE`")
	return cmd
}

func printPods(out io.Writer, l *listFlags, list *runtimeapi.ListPodSandboxResponse) error {
	if l.quiet {
		for _, p := range list.Items {
			fmt.Fprintln(out, p.GetId())
		}
		return nil
	}
	if l.format != asTable {
		return printMessage(out, list, l.format)
	}
	var rows [][]string
	for _, p := range list.Items {
		state, handler := "NotReady", p.GetRuntimeHandler()
		if p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			state = "Ready"
		}
		m := p.GetMetadata()
		rows = append(rows, []string{short(p.GetId()), ago(p.GetCreatedAt()), state, m.GetName(), m.GetNamespace(),
			fmt.Sprint(m.GetAttempt()), cmp.Or(handler, "(default)")})
	}
	return table(out, []string{"POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"}, rows)
}

func psCommand(s *session) *cobra.Command {
	var l listFlags
	var all bool
	var pod string
	cmd := &cobra.Command{
		Use: "ps", Short: "List containers", Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			filter := &runtimeapi.ContainerFilter{Id: l.id, PodSandboxId: pod, LabelSelector: l.labels}
			if l.state == "" && !all && l.last == 0 {
				l.state = "running"
			}
			if l.state != "" {
				n, ok := runtimeapi.ContainerState_value["CONTAINER_"+strings.ToUpper(l.state)]
				if !ok {
					return fmt.Errorf("--state %q is none of created, running, exited and unknown", l.state)
				}
				filter.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState(n)}
			}
			list, err := r.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
			if err != nil {
				return err
			}
			list.Containers, err = pick(&l, list.Containers, func(c *runtimeapi.Container) string { return c.GetMetadata().GetName() }, (*runtimeapi.Container).GetCreatedAt)
			if err != nil {
				return err
			}
			pods, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			if err != nil {
				return err
			}
			return printContainers(out, &l, list, pods.GetItems())
		}),
	}
	l.add(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that do not run, too")
	cmd.Flags().StringVarP(&pod, "pod", "p", "", "only those of the pod with this `ID`")
	return cmd
}

func printContainers(out io.Writer, l *listFlags, list *runtimeapi.ListContainersResponse, pods []*runtimeapi.PodSandbox) error {
	if l.quiet {
		for _, c := range list.Containers {
			fmt.Fprintln(out, c.GetId())
		}
		return nil
	}
	if l.format != asTable {
		return printMessage(out, list, l.format)
	}
	owner := map[string]*runtimeapi.PodSandboxMetadata{}
	for _, p := range pods {
		owner[p.GetId()] = p.GetMetadata()
	}
	var rows [][]string
	for _, c := range list.Containers {
		state := strings.TrimPrefix(c.GetState().String(), "CONTAINER_")
		pod := owner[c.GetPodSandboxId()]
		rows = append(rows, []string{short(c.GetId()), imageName(c), ago(c.GetCreatedAt()),
			state[:1] + strings.ToLower(state[1:]), c.GetMetadata().GetName(), fmt.Sprint(c.GetMetadata().GetAttempt()),
			short(c.GetPodSandboxId()), pod.GetName(), pod.GetNamespace()})
	}
	return table(out, []string{"CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE"}, rows)
}

// imageName is what the user called a container's image, or its short id.
func imageName(c *runtimeapi.Container) string {
	name := cmp.Or(c.GetImage().GetUserSpecifiedImage(), c.GetImage().GetImage())
	if strings.HasPrefix(name, "sha256:") {
		return short(name)
	}
	return name
}

func imagesCommand(s *session) *cobra.Command {
	l := listFlags{format: asTable}
	cmd := &cobra.Command{
		Use: "images [NAME]", Aliases: []string{"image", "img"}, Short: "List images", Args: cobra.MaximumNArgs(1),
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			var filter *runtimeapi.ImageFilter
			if len(args) > 0 {
				filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: args[0]}}
			}
			list, err := r.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: filter})
			if err != nil {
				return err
			}
			return printImages(out, &l, list)
		}),
	}
	cmd.Flags().BoolVarP(&l.quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().VarP(&l.format, "output", "o", "table, json or yaml")
	return cmd
}

func printImages(out io.Writer, l *listFlags, list *runtimeapi.ListImagesResponse) error {
	if l.quiet {
		for _, image := range list.Images {
			fmt.Fprintln(out, image.GetId())
		}
		return nil
	}
	if l.format != asTable {
		return printMessage(out, list, l.format)
	}
	var rows [][]string
	for _, image := range list.Images {
		names := image.GetRepoTags()
		if len(names) == 0 {
			names = []string{"<none>:<none>"}
		}
		for _, name := range names {
			colon := strings.LastIndexByte(name, ':')
			rows = append(rows, []string{name[:max(colon, 0)], name[colon+1:], short(image.GetId()), size(image.GetSize())})
		}
	}
	slices.SortFunc(rows, slices.Compare[[]string])
	return table(out, []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}, rows)
}
