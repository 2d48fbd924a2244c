package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// client talks to a shim.
type client struct {
	*ttrpc.Client
	service string
}

func (c *client) call(ctx context.Context, method string, req, resp proto.Message) error {
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{"containerd-namespace-ttrpc": []string{namespace}})
	if err := c.Call(ctx, c.service, method, req, resp); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return nil
}

func (c *client) create(ctx context.Context, t *Task, io *stdio) (err error) {
	req := &task.CreateTaskRequest{
		ID: t.ID, Bundle: t.Bundle, Terminal: io.tty != nil,
		Stdin: io.in, Stdout: io.out, Stderr: io.err,
	}
	if req.Options, err = t.options(); err != nil {
		return err
	}
	return c.call(ctx, "Create", req, &task.CreateTaskResponse{})
}

// The types under which shims know parts of the OCI specification, as JSON.
const (
	processType   = "types.containerd.io/opencontainers/runtime-spec/1/Process"
	resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
)

func (c *client) exec(ctx context.Context, t *Task, io *stdio) error {
	req := &task.ExecProcessRequest{
		ID: t.ID, ExecID: t.ExecID, Spec: &anypb.Any{TypeUrl: processType, Value: t.Process}, Terminal: io.tty != nil,
		Stdin: io.in, Stdout: io.out, Stderr: io.err,
	}
	return c.call(ctx, "Exec", req, &emptypb.Empty{})
}

// shutdown ends the shim, whose containers have all ended.
func (c *client) shutdown(ctx context.Context, t *Task) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	a, err := readAddress(t.Bundle)
	if err != nil {
		return err
	}
	err = c.call(ctx, "Shutdown", &task.ShutdownRequest{ID: t.ID, Now: true}, &emptypb.Empty{})
	if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		return err
	}
	c.awaitEnd(ctx, t)
	a.removeSockets()
	return removeFile(t.file(addressFile))
}

// lingering is how long a shim that was told to end may go on.
const lingering = 5 * time.Second

// awaitEnd waits until the shim does not answer any more. One that still has
// containers takes no notice; by now all of them are dead, and it is killed.
func (c *client) awaitEnd(ctx context.Context, t *Task) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(lingering); ctx.Err() == nil; <-tick.C {
		var r task.ConnectResponse
		if c.call(ctx, "Connect", &task.ConnectRequest{ID: t.ID}, &r) != nil {
			return
		}
		if time.Now().After(deadline) && r.ShimPid > 1 {
			unix.Kill(int(r.ShimPid), unix.SIGKILL)
		}
	}
}

// End ends what a stand-in stood for that was killed; of one that ended as it
// should there is nothing.
func End(ctx context.Context, t Task) error {
	file := t.file(taskFile)
	if t.isPod() {
		file = t.file(addressFile)
	}
	if _, err := os.Lstat(file); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	a, err := readAddress(t.podBundle())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err == nil {
		if err := a.end(ctx, &t); err == nil {
			return removeFile(file)
		} // else the shim is dead, too
	}
	if _, err := t.deleteByCommand(ctx); err != nil {
		return err
	}
	if t.isPod() && a != nil {
		a.removeSockets()
	}
	return removeFile(file)
}

// end kills and deletes a container by its shim, and ends that if it is the pod.
func (a *address) end(ctx context.Context, t *Task) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	c.call(ctx, "Kill", &task.KillRequest{ID: t.ID, Signal: uint32(unix.SIGKILL), All: true}, &emptypb.Empty{})
	c.call(ctx, "Wait", &task.WaitRequest{ID: t.ID}, &task.WaitResponse{})
	if err := c.call(ctx, "Delete", &task.DeleteRequest{ID: t.ID}, &task.DeleteResponse{}); err != nil {
		return err
	}
	if !t.isPod() {
		return nil
	}
	return c.shutdown(ctx, t)
}

// Update changes the limits of a container that runs.
func Update(ctx context.Context, t Task, r *specs.LinuxResources) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return t.ask(ctx, "Update", &task.UpdateTaskRequest{ID: t.ID, Resources: &anypb.Any{TypeUrl: resourcesType, Value: value}}, &emptypb.Empty{})
}

// ask makes one call to the shim of a container.
func (t *Task) ask(ctx context.Context, method string, req, resp proto.Message) error {
	a, err := readAddress(t.podBundle())
	if err != nil {
		return err
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return c.call(ctx, method, req, resp)
}

// Kill sends a signal to a container, or an exec in it. One that has ended, and
// be it with its shim, is os.ErrProcessDone.
func Kill(ctx context.Context, t Task, signal int) error {
	err := t.ask(ctx, "Kill", &task.KillRequest{ID: t.ID, ExecID: t.ExecID, Signal: uint32(signal)}, &emptypb.Empty{})
	gone := errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, ttrpc.ErrClosed)
	if gone || status.Code(err) == codes.NotFound {
		return fmt.Errorf("%w: %w", os.ErrProcessDone, err)
	}
	return err
}

// Pid is the number that the shim has given for a container's process, 0 if
// there is none.
func Pid(bundle string) int {
	t := Task{Bundle: bundle}
	b, err := os.ReadFile(t.file(taskFile))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(string(b))
	return pid
}
