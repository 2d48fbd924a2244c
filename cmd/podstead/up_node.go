package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podstead/agent/client"
	"podstead/sys"
)

// ownNode is the node that `up` started because none ran; nil if one did.
type ownNode struct {
	opt *options
	cmd *exec.Cmd
}

// nodeRecord remembers the node that `up --detach` left running, for `down`.
type nodeRecord struct {
	Pid        int    `json:"pid"`
	StartTicks uint64 `json:"startTicks"`
}

func (o *options) nodeRecordPath() string { return filepath.Join(o.runDir, "up.json") }

const (
	nodeStart = 20 * time.Second
	nodeStop  = 30 * time.Second
)

// ensureNode makes sure that a node answers, and starts one otherwise. Its
// messages go to RUN/node.log.
func (u *up) ensureNode(ctx context.Context, c *client.Client) (*ownNode, error) {
	if c.Healthy(ctx) == nil {
		return nil, nil
	}
	logPath := filepath.Join(u.runDir, "node.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "node", "--state", u.stateDir, "--run", u.runDir, "--log-level", u.logLevel, "--engine-config", u.config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for us alone
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a node: %w", err)
	}
	node := &ownNode{opt: u.options, cmd: cmd}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, nodeStart)
	defer cancel()
	for {
		if c.Healthy(ctx) == nil {
			return node, nil
		}
		select {
		case err := <-exited:
			return nil, fmt.Errorf("the node ended while it started (see %s): %v", logPath, err)
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("the node does not answer (see %s): %w", logPath, ctx.Err()), node.release(false))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// release ends the node, or with keep leaves it for a later `down`.
func (n *ownNode) release(keep bool) error {
	if n == nil {
		return nil
	}
	ticks, err := sys.StartTime(n.cmd.Process.Pid)
	if err != nil {
		return nil // it has ended
	}
	record := nodeRecord{Pid: n.cmd.Process.Pid, StartTicks: ticks}
	if !keep {
		return record.stop()
	}
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(n.opt.nodeRecordPath(), data, 0o600, false)
}

// stop tells the node to end and waits for that.
func (r nodeRecord) stop() error {
	pidfd, err := sys.OpenPidfd(r.Pid, r.StartTicks)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop the node (pid %d): %w", r.Pid, err)
	}
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	deadline := time.Now().Add(nodeStop)
	for {
		n, err := unix.Poll(poll, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("the node (pid %d) did not end within %s", r.Pid, nodeStop)
		}
		return nil
	}
}

// stopIdleNode ends the node that `up --detach` left, if nothing runs on it.
func (o *options) stopIdleNode(ctx context.Context, c *client.Client) error {
	data, err := os.ReadFile(o.nodeRecordPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var record nodeRecord
	if err := json.Unmarshal(data, &record); err != nil {
		return fmt.Errorf("%s: %w", o.nodeRecordPath(), err)
	}
	pods, err := c.Pods(ctx, "")
	if err != nil {
		return err
	}
	if len(pods.Items) > 0 {
		return nil
	}
	if err := record.stop(); err != nil {
		return err
	}
	return os.Remove(o.nodeRecordPath())
}
