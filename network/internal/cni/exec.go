package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// executor runs plugins for libcni. Unlike libcni's own it ends what a plugin
// has started when its time is over, and does not wait for the ends of pipes
// that a daemon of the plugin's may keep.
type executor struct {
	version.PluginDecoder
}

// pipeGrace is how long output is waited for once a plugin has ended.
const pipeGrace = 2 * time.Second

// maxOutput bounds what is kept of either stream.
const maxOutput = 4 << 20

// ExecPlugin implements invoke.Exec.
func (*executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr limitedBuffer
	run := func() error {
		stdout, stderr = limitedBuffer{}, limitedBuffer{}
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = environ
		cmd.Stdin = bytes.NewReader(stdin)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = pipeGrace
		return cmd.Run()
	}
	err := run()
	for tries := 0; errors.Is(err, syscall.ETXTBSY) && tries < 5; tries++ {
		// The plugin is being replaced right now.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			err = run()
		}
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended well; somebody else holds its pipes
	}
	if err != nil {
		return nil, pluginError(ctx, path, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

// pluginError prefers what the plugin says on its standard output (spec, section
// 5), then what it wrote to the other one.
func pluginError(ctx context.Context, path string, err error, stdout, stderr []byte) error {
	if ctx.Err() != nil {
		return fmt.Errorf("plugin %s was ended: %w", path, context.Cause(ctx))
	}
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = strings.TrimSpace(string(stdout))
	}
	const maxText = 1000
	if len(text) > maxText {
		text = text[:maxText] + "…"
	}
	return fmt.Errorf("plugin %s: %w: %s", path, err, text)
}

// FindInPath implements invoke.Exec.
func (*executor) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// limitedBuffer keeps the first maxOutput bytes.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); len(p) > room {
		b.Buffer.Write(p[:room])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}
