package ctl

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

func versionCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the runtime's name and versions", Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			v, err := r.Version(ctx, &runtimeapi.VersionRequest{})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "Version:  %s\nRuntimeName:  %s\nRuntimeVersion:  %s\nRuntimeApiVersion:  %s\n",
				v.GetVersion(), v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion())
			return err
		}),
	}
}

func infoCommand(s *session) *cobra.Command {
	format := asJSON
	cmd := &cobra.Command{
		Use: "info", Short: "Print the runtime's conditions and configuration", Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			status, err := r.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
			if err != nil {
				return err
			}
			return printMessage(out, status, format)
		}),
	}
	cmd.Flags().VarP(&format, "output", "o", "json or yaml")
	return cmd
}

func imageFsCommand(s *session) *cobra.Command {
	format := asJSON
	cmd := &cobra.Command{
		Use: "imagefsinfo", Short: "Print what images take on disk", Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, _ []string) error {
			info, err := r.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
			if err != nil {
				return err
			}
			return printMessage(out, info, format)
		}),
	}
	cmd.Flags().VarP(&format, "output", "o", "json or yaml")
	return cmd
}
