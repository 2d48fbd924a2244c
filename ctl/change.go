package ctl

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"podstead/cri"
	"podstead/cri/remote"
)

// readConfig reads a pod's or container's configuration, JSON or YAML, with the
// names of the CRI's fields. A field that it does not have is refused.
func readConfig(path string, config any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(data, config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func pullCommand(s *session) *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image", Args: cobra.ExactArgs(1),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}}
			if creds != "" {
				user, password, _ := strings.Cut(creds, ":")
				request.Auth = &runtimeapi.AuthConfig{Username: user, Password: password}
			}
			pulled, err := r.PullImage(ctx, request)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "Image is up to date for %s\n", pulled.GetImageRef())
			return err
		}),
	}
	cmd.Flags().StringVar(&creds, "creds", "", "`USER:PASSWORD` for the registry")
	return cmd
}

func runPodCommand(s *session) *cobra.Command {
	var handler string
	cmd := &cobra.Command{
		Use: "runp POD-CONFIG", Short: "Run a pod", Args: cobra.ExactArgs(1),
		RunE: s.run(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			config := &runtimeapi.PodSandboxConfig{}
			if err := readConfig(args[0], config); err != nil {
				return err
			}
			run, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, run.GetPodSandboxId())
			return err
		}),
	}
	cmd.Flags().StringVarP(&handler, "runtime", "R", "", "`NAME` of the runtime handler")
	return cmd
}

func createCommand(s *session) *cobra.Command {
	var pull, noPull bool
	cmd := &cobra.Command{
		Use: "create POD CONTAINER-CONFIG POD-CONFIG", Short: "Create a container", Args: cobra.ExactArgs(3),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			config, pod := &runtimeapi.ContainerConfig{}, &runtimeapi.PodSandboxConfig{}
			if err := readConfig(args[1], config); err != nil {
				return err
			}
			if err := readConfig(args[2], pod); err != nil {
				return err
			}
			if pull && !noPull {
				if _, err := r.PullImage(ctx, &runtimeapi.PullImageRequest{Image: config.GetImage(), SandboxConfig: pod}); err != nil {
					return err
				}
			}
			created, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: args[0], Config: config, SandboxConfig: pod})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, created.GetContainerId())
			return err
		}),
	}
	cmd.Flags().BoolVar(&pull, "with-pull", false, "pull the image first")
	cmd.Flags().BoolVar(&noPull, "no-pull", false, "do not pull the image")
	return cmd
}

// onEach makes a command that does something with each argument and then
// prints it.
func (s *session) onEach(use, what, done string, do func(context.Context, *remote.Runtime, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: what, Args: cobra.MinimumNArgs(1),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			return each(args, func(id string) error {
				if err := do(ctx, r, id); err != nil {
					return err
				}
				_, err := fmt.Fprintf(out, "%s%s\n", done, id)
				return err
			})
		}),
	}
}

func startCommand(s *session) *cobra.Command {
	return s.onEach("start CONTAINER…", "Start created containers", "", func(ctx context.Context, r *remote.Runtime, id string) error {
		_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
}

func stopCommand(s *session) *cobra.Command {
	var grace int64
	cmd := s.onEach("stop CONTAINER…", "Stop containers", "", func(ctx context.Context, r *remote.Runtime, id string) error {
		_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace})
		return err
	})
	cmd.Flags().Int64VarP(&grace, "timeout", "t", 0, "`SECONDS` until a container is killed")
	return cmd
}

func stopPodCommand(s *session) *cobra.Command {
	return s.onEach("stopp POD…", "Stop pods", "Stopped sandbox ", func(ctx context.Context, r *remote.Runtime, id string) error {
		_, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
}

func removeCommand(s *session) *cobra.Command {
	var force bool
	cmd := s.onEach("rm CONTAINER…", "Remove containers", "", func(ctx context.Context, r *remote.Runtime, id string) error {
		status, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil && !cri.IsNotFound(err) {
			return err
		}
		if !force && status.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("it runs; stop it first, or use --force")
		}
		_, err = r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if they run")
	return cmd
}

func removePodCommand(s *session) *cobra.Command {
	var force bool
	cmd := s.onEach("rmp POD…", "Remove pods", "Removed sandbox ", func(ctx context.Context, r *remote.Runtime, id string) error {
		status, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil && !cri.IsNotFound(err) {
			return err
		}
		if !force && err == nil && status.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			return fmt.Errorf("it is ready; stop it first, or use --force")
		}
		_, err = r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also if they are ready")
	return cmd
}

func removeImageCommand(s *session) *cobra.Command {
	return s.onEach("rmi IMAGE…", "Remove images", "Deleted: ", func(ctx context.Context, r *remote.Runtime, name string) error {
		_, err := r.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		return err
	})
}
