package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

func eventsCommand(s *session) *cobra.Command {
	var format, text string
	cmd := &cobra.Command{
		Use: "events", Aliases: []string{"event"}, Short: "Print what happens to containers and pods, as it happens", Args: cobra.NoArgs,
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			print, err := eventPrinter(out, format, text)
			if err != nil {
				return err
			}
			err = r.ContainerEvents(ctx, nil, print)
			if ctx.Err() != nil {
				return nil // told to stop
			}
			return err
		}),
	}
	f := cmd.Flags()
	f.StringVarP(&format, "output", "o", "json", "json, yaml or go-template")
	f.StringVar(&text, "template", "", "the Go `TEMPLATE` for -o go-template")
	return cmd
}

// eventPrinter chooses how an event is printed.
func eventPrinter(out io.Writer, format, text string) (func(*runtimeapi.ContainerEventResponse) error, error) {
	switch format {
	case "json", "yaml":
		if text != "" {
			return nil, fmt.Errorf("--template is for -o go-template, not %s", format)
		}
		return func(e *runtimeapi.ContainerEventResponse) error { return printMessage(out, e, outputFlag(format)) }, nil
	case "go-template":
		t, err := parseTemplate(text)
		if err != nil {
			return nil, err
		}
		return func(e *runtimeapi.ContainerEventResponse) error { return printTemplate(out, e, t) }, nil
	}
	return nil, fmt.Errorf("--output %q is none of json, yaml and go-template", format)
}

// parseTemplate reads a template, which has crictl's function json.
func parseTemplate(text string) (*template.Template, error) {
	if strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("-o go-template needs --template")
	}
	t, err := template.New("template").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	}}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--template: %w", err)
	}
	return t, nil
}

// printTemplate prints a message, by the names of its JSON form, and a newline.
func printTemplate(out io.Writer, m proto.Message, t *template.Template) error {
	encoded, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	var object any
	if err := json.Unmarshal(encoded, &object); err != nil {
		return err
	}
	if err := t.Execute(out, object); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out)
	return err
}
