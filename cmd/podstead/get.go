package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func getCommand(opt *options) *cobra.Command {
	var namespace, output string
	var all bool
	cmd := &cobra.Command{
		Use:       "get pods [NAME…] | get nodes | get problems",
		Short:     "Show pods of the running node, the node, or what is wrong with it and with manifests",
		ValidArgs: []string{"pods", "nodes", "problems"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || !slices.Contains([]string{"pods", "pod", "po"}, args[0]) && !isNode(args[0]) && !areProblems(args[0]) {
				return fmt.Errorf("say what to get: pods, nodes or problems")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c := opt.client()
			defer c.Close()
			if isNode(args[0]) {
				return printNodes(cmd, c, output)
			}
			if areProblems(args[0]) {
				return printProblems(cmd, c, output)
			}
			if all {
				namespace = ""
			}
			list, err := c.Pods(cmd.Context(), namespace)
			if err != nil {
				return err
			}
			if list.Items, err = selectPods(list.Items, args[1:]); err != nil {
				return err
			}
			if output == "" || output == "wide" {
				defer hint(cmd, c, len(list.Items))
			}
			return printPods(cmd.OutOrStdout(), list, output, len(args) == 2)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only pods of this `NAMESPACE`")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "pods of all namespaces, as without --namespace")
	cmd.Flags().StringVarP(&output, "output", "o", "", "wide, yaml, json or name")
	return cmd
}

func selectPods(pods []corev1.Pod, names []string) ([]corev1.Pod, error) {
	if len(names) == 0 {
		return pods, nil
	}
	var out []corev1.Pod
	for _, name := range names {
		i := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.Name == name || p.Namespace+"/"+p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("pod %q not found", name)
		}
		out = append(out, pods[i])
	}
	return out, nil
}

func printPods(w io.Writer, list *corev1.PodList, output string, single bool) error {
	list.APIVersion, list.Kind = "v1", "PodList"
	for i := range list.Items {
		list.Items[i].APIVersion, list.Items[i].Kind = "v1", "Pod"
	}
	var doc any = list
	if single && len(list.Items) == 1 {
		doc = &list.Items[0]
	}
	var names []string
	for _, p := range list.Items {
		names = append(names, "pod/"+p.Name)
	}
	return printAs(w, output, doc, names, func(wide bool) error { return podTable(w, list.Items, wide) })
}

// printAs prints objects in the form that --output asks for; table is for people.
func printAs(w io.Writer, output string, doc any, names []string, table func(wide bool) error) error {
	switch output {
	case "yaml":
		data, err := yaml.Marshal(doc)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(doc)
	case "name":
		for _, name := range names {
			fmt.Fprintln(w, name)
		}
		return nil
	case "", "wide":
		return table(output == "wide")
	default:
		return fmt.Errorf("--output %q is not wide, yaml, json or name", output)
	}
}

func podTable(w io.Writer, pods []corev1.Pod, wide bool) error {
	header := []string{"NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"}
	if wide {
		header = append(header, "IP", "NODE", "PORTS", "IMAGES")
	}
	var rows [][]string
	for _, p := range pods {
		ready, restarts := 0, 0
		for _, c := range p.Status.ContainerStatuses {
			if c.Ready {
				ready++
			}
			restarts += int(c.RestartCount)
		}
		row := []string{p.Namespace, p.Name, fmt.Sprintf("%d/%d", ready, len(p.Spec.Containers)), podStatus(&p), strconv.Itoa(restarts), age(p.CreationTimestamp.Time)}
		if wide {
			row = append(row, orNone(p.Status.PodIP), orNone(p.Spec.NodeName), orNone(strings.Join(hostPorts(&p), ",")), strings.Join(images(&p), ","))
		}
		rows = append(rows, row)
	}
	return table(w, header, rows)
}

// podStatus is the word that kubectl shows: why a container waits or ended, or
// else the phase.
func podStatus(p *corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "Terminating"
	}
	for i, c := range p.Status.InitContainerStatuses {
		switch {
		case c.State.Terminated != nil && c.State.Terminated.ExitCode == 0, c.Started != nil && *c.Started && c.State.Running != nil:
			continue
		case c.State.Terminated != nil:
			return "Init:" + orElse(c.State.Terminated.Reason, fmt.Sprintf("ExitCode:%d", c.State.Terminated.ExitCode))
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			return "Init:" + c.State.Waiting.Reason
		default:
			return fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
	}
	status := orElse(p.Status.Reason, string(p.Status.Phase))
	if p.Status.Phase == corev1.PodPending && p.Status.Reason != "" {
		return status // it does not start, so no container says more
	}
	for _, c := range slices.Backward(p.Status.ContainerStatuses) {
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			status = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			status = orElse(c.State.Terminated.Reason, fmt.Sprintf("ExitCode:%d", c.State.Terminated.ExitCode))
		}
	}
	return orElse(status, "Unknown")
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// hostPorts lists "8080->80/TCP" for each port that the host serves.
func hostPorts(p *corev1.Pod) []string {
	var out []string
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort != 0 {
				out = append(out, fmt.Sprintf("%d->%d/%s", port.HostPort, port.ContainerPort, orElse(string(port.Protocol), "TCP")))
			}
		}
	}
	return out
}

func images(p *corev1.Pod) []string {
	var out []string
	for _, c := range p.Spec.Containers {
		out = append(out, c.Image)
	}
	return out
}
