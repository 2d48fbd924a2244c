package engine

import (
	"encoding/json"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/config"
	"podstead/engine/handler"
	"podstead/engine/internal/spec"
	"podstead/image"
)

// statusInfo is for people: what Status shows when it is asked to be verbose. Each
// value is JSON; who can do something about what is wrong finds it here.
func (e *Engine) statusInfo(status *runtimeapi.StatusResponse) (map[string]string, error) {
	info := map[string]string{}
	for key, value := range map[string]any{
		"version":    e.versionInfo(),
		"config":     e.configInfo(),
		"host":       e.hostInfo(),
		"handlers":   e.handlerInfo(status),
		"network":    conditionInfo(status, runtimeapi.NetworkReady),
		"images":     e.imageInfo(),
		"pods":       e.podInfo(),
		"warnings":   e.recent.list(),
		"cdi":        e.devices.State(),
		"nri":        e.plugins.State(),
		"checkpoint": checkpointInfo(),
	} {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		info[key] = string(b)
	}
	return info, nil
}

func (e *Engine) versionInfo() any {
	return map[string]any{
		"podstead": e.version(), "go": runtime.Version(), "os": runtime.GOOS + "/" + runtime.GOARCH,
		"pid": os.Getpid(), "started": e.started.UTC().Format(time.RFC3339),
	}
}

func (e *Engine) configInfo() any {
	return map[string]any{
		"stateDir": e.cfg.StateDir, "runDir": e.cfg.RunDir, "cgroupParent": e.cfg.CgroupParent,
		"streamAddress": e.streams.Addr().String(),
		"file":          e.note.Load(), "settings": e.settings.Load().Config,
	}
}

// hostInfo tells what the machine has, and what it lacks.
func (e *Engine) hostInfo() any {
	var u unix.Utsname
	unix.Uname(&u) // cannot fail
	cgroups := "v1 or hybrid"
	if e.host.spec.CgroupUnified {
		cgroups = "v2"
	}
	has := func(c string) bool { return slices.Contains(e.host.spec.Capabilities, c) }
	return map[string]any{
		"hostname": e.host.name, "kernel": unix.ByteSliceToString(u.Release[:]), "bootID": e.bootID,
		"cgroups": cgroups, "swapAccounting": e.cfg.Cgroups.HasSwap(),
		"apparmor": e.host.spec.AppArmor, "selinux": e.host.spec.SELinux,
		"capabilities":        e.host.spec.Capabilities,
		"missingCapabilities": slices.DeleteFunc(spec.CapabilityNames(^uint64(0)), has),
	}
}

// handlerInfo tells whether pods can have a handler, and why a feature is off.
func (e *Engine) handlerInfo(status *runtimeapi.StatusResponse) any {
	type info struct {
		Name                    string `json:"name"`
		Type                    string `json:"type"`
		Program                 string `json:"program,omitempty"`
		Trouble                 string `json:"trouble,omitempty"`
		RecursiveReadOnlyMounts string `json:"recursiveReadOnlyMounts"`
		UserNamespaces          string `json:"userNamespaces"`
	}
	say := func(on bool, needs string) string {
		if on {
			return "yes"
		}
		return "no: " + needs
	}
	handlers := e.settings.Load().handlers
	var list []info
	for _, h := range status.GetRuntimeHandlers() {
		i := info{
			Name: h.GetName(), Type: config.Builtin,
			RecursiveReadOnlyMounts: say(h.GetFeatures().GetRecursiveReadOnlyMounts(), "needs mount_setattr (Linux 5.12), and a runtime with the mount option rro in its features"),
			UserNamespaces:          say(h.GetFeatures().GetUserNamespaces(), "needs idmapped overlay layers (Linux 5.19), user.max_user_namespaces above 0, and a runtime with idmapped mounts (mountExtensions.idmap) in its features that is no shim"),
		}
		if of := handlers[h.GetName()]; of.Name != "" && of.Kind() != config.Builtin {
			i.Type, i.Program = of.Kind(), of.Program()
			if q, ok := of.is.(handler.Inquirer); ok && q.Trouble() != nil {
				i.Trouble = q.Trouble().Error()
			}
		}
		list = append(list, i)
	}
	return list
}

func conditionInfo(status *runtimeapi.StatusResponse, condition string) any {
	for _, c := range status.GetStatus().GetConditions() {
		if c.GetType() == condition {
			return map[string]any{"ready": c.GetStatus(), "reason": c.GetReason(), "message": c.GetMessage()}
		}
	}
	return nil
}

func (e *Engine) imageInfo() any {
	bytes, inodes := e.cfg.Images.Usage()
	type pull struct {
		Image   string `json:"image"`
		Stage   string `json:"stage"`
		Running string `json:"running"`
	}
	pulls := []pull{}
	for _, p := range e.cfg.Images.Pulls() {
		pulls = append(pulls, pull{p.Ref, p.Stage, time.Since(p.Started).Round(time.Second).String()})
	}
	list := e.cfg.Images.List()
	others := func(img image.Image) bool { return !img.Pinned && !e.isPinned(img) }
	return map[string]any{
		"directory": e.imageDir(), "images": len(list), "pinned": len(slices.DeleteFunc(list, others)),
		"bytes": bytes, "inodes": inodes, "pulls": pulls,
	}
}

// podInfo counts, and names what is stuck.
func (e *Engine) podInfo() any {
	sandboxes, containers, stuck := map[sandboxPhase]int{}, map[containerPhase]int{}, map[string]string{}
	for _, s := range e.allSandboxes() {
		rec := s.record()
		sandboxes[rec.Phase]++
		if rec.Message != "" {
			stuck[s.id] = strings.TrimSpace(string(rec.Phase) + ": " + rec.Message)
		}
	}
	for _, c := range e.allContainers() {
		containers[c.record().Phase]++
	}
	return map[string]any{"sandboxes": sandboxes, "containers": containers, "notReady": stuck}
}
