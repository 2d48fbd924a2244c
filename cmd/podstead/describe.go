package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
)

func describeCommand(opt *options) *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "describe pod NAME | describe node",
		Short: "Tell everything about a pod: what it does, what it waits for, what happened; or about the node",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && isNode(args[0]) {
				return nil
			}
			return podArgs("describe")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c := opt.client()
			defer c.Close()
			if isNode(args[0]) {
				return describeNode(cmd, c)
			}
			ctx, name := cmd.Context(), args[1]
			pod, err := c.Pod(ctx, namespace, name)
			if err != nil {
				return err
			}
			events, err := c.PodEvents(ctx, namespace, name)
			if err != nil {
				return err
			}
			why, err := c.Why(ctx, namespace, name)
			if err != nil {
				return err
			}
			return describePod(cmd.OutOrStdout(), pod, why, events.Items)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", defaultNamespace, "`NAMESPACE` of the pod")
	return cmd
}

// podArgs accepts "pod NAME".
func podArgs(verb string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 2 || (args[0] != "pod" && args[0] != "pods" && args[0] != "po") {
			return fmt.Errorf("usage: podstead %s pod NAME", verb)
		}
		return nil
	}
}

func describePod(out io.Writer, p *corev1.Pod, why client.Why, events []corev1.Event) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(w, "%s:\t%s\n", key, fmt.Sprintf(format, args...)) }
	line("Name", "%s", p.Name)
	line("Namespace", "%s", p.Namespace)
	line("UID", "%s", p.UID)
	if from := p.Annotations[client.AnnotationManifest]; from != "" {
		line("Manifest", "%s", from)
	}
	line("Node", "%s/%s", orNone(p.Spec.NodeName), orNone(p.Status.HostIP))
	line("Status", "%s", podStatus(p))
	line("IP", "%s", orNone(p.Status.PodIP))
	line("QoS class", "%s", p.Status.QOSClass)
	if p.Status.Message != "" {
		line("Message", "%s", p.Status.Message)
	}
	line("Stage", "%s, for %s", why.Stage, age(why.Since))
	if why.Next != "" {
		line("Next", "%s", why.Next)
	}
	for _, wait := range why.Waiting {
		line("Waiting", "%s", describeWait(wait))
	}
	fmt.Fprintln(w, "Conditions:")
	for _, c := range p.Status.Conditions {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", c.Type, c.Status, strings.TrimSpace(c.Reason+" "+c.Message))
	}
	describeContainers(w, "Init containers", p.Spec.InitContainers, p.Status.InitContainerStatuses)
	describeContainers(w, "Containers", p.Spec.Containers, p.Status.ContainerStatuses)
	var ephemeral []corev1.Container
	for _, e := range p.Spec.EphemeralContainers {
		ephemeral = append(ephemeral, corev1.Container(e.EphemeralContainerCommon))
	}
	describeContainers(w, "Ephemeral containers", ephemeral, p.Status.EphemeralContainerStatuses)
	describeEvents(w, events)
	return w.Flush()
}

func describeEvents(w io.Writer, events []corev1.Event) {
	fmt.Fprintln(w, "Events:")
	for _, e := range events {
		count := ""
		if e.Count > 1 {
			count = fmt.Sprintf(" (%d times)", e.Count)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s%s%s\n", age(e.LastTimestamp.Time), e.Type, e.Reason, eventOf(e), e.Message, count)
	}
}

// eventOf names the container of an event, of which its message need not speak.
func eventOf(e corev1.Event) string {
	_, name, ok := strings.Cut(e.InvolvedObject.FieldPath, "{")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(name, "}") + ": "
}

func describeWait(wait client.Wait) string {
	s := wait.Reason
	if wait.Container != "" {
		s = "container " + wait.Container + ": " + s
	}
	if wait.Message != "" {
		s += ": " + wait.Message
	}
	var times []string
	if !wait.Since.IsZero() {
		times = append(times, "for "+age(wait.Since))
	}
	if !wait.Until.IsZero() {
		times = append(times, fmt.Sprintf("until %s, in %s", wait.Until.Local().Format(time.TimeOnly), max(0, time.Until(wait.Until)).Round(time.Second)))
	}
	if len(times) > 0 {
		s += " (" + strings.Join(times, "; ") + ")"
	}
	return s
}

func describeContainers(w io.Writer, title string, containers []corev1.Container, statuses []corev1.ContainerStatus) {
	if len(containers) == 0 {
		return
	}
	fmt.Fprintln(w, title+":")
	for _, c := range containers {
		fmt.Fprintf(w, "  %s:\n    image:\t%s\n", c.Name, c.Image)
		for _, s := range statuses {
			if s.Name != c.Name {
				continue
			}
			fmt.Fprintf(w, "    state:\t%s\n", describeState(s.State))
			if s.LastTerminationState.Terminated != nil {
				fmt.Fprintf(w, "    last state:\t%s\n", describeState(s.LastTerminationState))
			}
			fmt.Fprintf(w, "    ready:\t%t\n    restarts:\t%d\n    ID:\t%s\n", s.Ready, s.RestartCount, orNone(s.ContainerID))
		}
	}
}

func describeState(s corev1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running since " + s.Running.StartedAt.Format(time.RFC3339)
	case s.Terminated != nil:
		t := s.Terminated
		return strings.TrimSpace(fmt.Sprintf("terminated with %d (%s) at %s %s", t.ExitCode, t.Reason, t.FinishedAt.Format(time.RFC3339), t.Message))
	case s.Waiting != nil:
		return strings.TrimSpace(fmt.Sprintf("waiting: %s %s", s.Waiting.Reason, s.Waiting.Message))
	default:
		return "unknown"
	}
}
