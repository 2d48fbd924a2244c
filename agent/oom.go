package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/internal/oom"
	"podstead/sys"
)

// systemOOM is the kubelet's reason of events about the node.
const systemOOM = "SystemOOM"

// watchOOM makes an event of the node of each process that the kernel killed
// because the machine was out of memory. Each is told once: the next agent, and it
// may be the agent that was killed, goes on after the last.
func (a *Agent) watchOOM(ctx context.Context) {
	if a.kernelLog == "" {
		return
	}
	told := a.toldOOM()
	err := oom.Watch(ctx, a.kernelLog, told, func(k oom.Kill) {
		a.node.events.AddNode(corev1.EventTypeWarning, systemOOM, k.String())
		a.cfg.Log.Warn("the machine ran out of memory, and the kernel killed a process", "process", k.Process, "pid", k.PID)
		if err := a.keepOOM(k.Sequence); err != nil {
			a.cfg.Log.Warn("the next agent tells of this again", "error", err)
		}
	})
	if ctx.Err() == nil {
		a.cfg.Log.Warn("processes that the kernel kills for the machine's lack of memory are not told", "error", err)
	}
}

func (a *Agent) oomFile() string { return filepath.Join(a.cfg.RunDir, "oom") }

// keepOOM remembers, for this boot, up to where the kernel's log was told.
func (a *Agent) keepOOM(sequence uint64) error {
	if a.cfg.RunDir == "" {
		return nil
	}
	return sys.WriteFileAtomic(a.oomFile(), fmt.Appendf(nil, "%s %d\n", bootID(), sequence), 0o600, false)
}

func (a *Agent) toldOOM() (sequence uint64) {
	data, err := os.ReadFile(a.oomFile())
	if err != nil {
		return 0
	}
	rest, ok := strings.CutPrefix(string(data), bootID()+" ")
	if _, err := fmt.Sscan(rest, &sequence); !ok || err != nil {
		return 0
	}
	return sequence
}

func bootID() string { return firstLine("/proc/sys/kernel/random/boot_id") }
