package ctl

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

func inspectCommand(s *session) *cobra.Command {
	return s.inspect("inspect CONTAINER…", "Print all about containers", func(ctx context.Context, r *remote.Runtime, id string) (proto.Message, error) {
		return r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	})
}

func inspectPodCommand(s *session) *cobra.Command {
	return s.inspect("inspectp POD…", "Print all about pods", func(ctx context.Context, r *remote.Runtime, id string) (proto.Message, error) {
		return r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	})
}

func inspectImageCommand(s *session) *cobra.Command {
	cmd := s.inspect("inspecti IMAGE…", "Print all about images", func(ctx context.Context, r *remote.Runtime, name string) (proto.Message, error) {
		status, err := r.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}, Verbose: true})
		if err == nil && status.GetImage() == nil {
			return nil, fmt.Errorf("there is no such image")
		}
		return status, err
	})
	return cmd
}

// inspect makes a command that prints one message for each argument.
func (s *session) inspect(use, what string, get func(context.Context, *remote.Runtime, string) (proto.Message, error)) *cobra.Command {
	format := asJSON
	cmd := &cobra.Command{
		Use: use, Short: what, Args: cobra.MinimumNArgs(1),
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			return each(args, func(id string) error {
				m, err := get(ctx, r, id)
				if err != nil {
					return err
				}
				return printMessage(out, m, format)
			})
		}),
	}
	cmd.Flags().VarP(&format, "output", "o", "json or yaml")
	return cmd
}
