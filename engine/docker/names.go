package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/store"
)

// Keys of labels. Those of io.kubernetes are dockershim's; what reads them, log
// collectors and people, finds what it knows.
const (
	labelType    = "io.kubernetes.docker.type"
	labelSandbox = "io.kubernetes.sandbox.id"
	labelLogPath = "io.kubernetes.container.logpath"
	labelRecord  = "podstead.record" // all that we know, as JSON

	typeSandbox   = "podsandbox"
	typeContainer = "container"
)

// sandboxRecord is what a sandbox's label holds.
type sandboxRecord struct {
	Config      store.Message[runtimeapi.PodSandboxConfig, *runtimeapi.PodSandboxConfig]
	Handler     string
	CreatedAt   int64 // nanoseconds; Docker's own lists have seconds
	Fingerprint string
	// Connected says that our network or its plugins connect the pod, and not
	// Docker.
	Connected bool `json:",omitempty"`
	// OwnCgroup says that nobody else had made the pod's cgroup.
	OwnCgroup bool `json:",omitempty"`
}

func (r *sandboxRecord) config() *runtimeapi.PodSandboxConfig { return r.Config.M }

func (r *sandboxRecord) namespaces() *runtimeapi.NamespaceOption {
	return r.config().GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (r *sandboxRecord) hostNetwork() bool {
	return r.namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// containerRecord is what a container's label holds. Its command and variables
// are Docker's to keep.
type containerRecord struct {
	Config      store.Message[runtimeapi.ContainerConfig, *runtimeapi.ContainerConfig]
	SandboxID   string
	CreatedAt   int64
	Fingerprint string
	ImageID     string
	ImageRef    string
	ImageName   string
	LogPath     string
	UID, GID    uint32
	Groups      []uint32
	StopSignal  runtimeapi.Signal
	StopNumber  int
	Mounts      string `json:",omitempty"` // the key of those that we made for it
}

func (r *containerRecord) config() *runtimeapi.ContainerConfig { return r.Config.M }

// sandboxState and containerState are what changes and labels cannot hold.
type (
	sandboxState struct {
		// Connected says that who connects the pod has done so, with these addresses.
		Connected bool
		IPs       []string
		// Updated are the pod's sums as the client told them last.
		Updated             bool
		Overhead, Resources store.Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources]
	}
	containerState struct {
		Resources store.Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources]
	}
)

// labelsOf are the labels of an object: the client's own, for people, ours, and
// the record.
func labelsOf(own, ours map[string]string, record any) (map[string]string, error) {
	b, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	labels := maps.Clone(own)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, ours)
	labels[labelRecord] = string(b)
	return labels, nil
}

// withoutProcess is a configuration without what Docker keeps itself.
func withoutProcess(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	c = proto.CloneOf(c)
	c.Command, c.Args, c.Envs = nil, nil, nil
	return c
}

// sandboxName and containerName are dockershim's names.
func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return dockerName("k8s", "POD", m.GetName(), m.GetNamespace(), m.GetUid(), fmt.Sprint(m.GetAttempt()))
}

func containerName(c *runtimeapi.ContainerMetadata, pod *runtimeapi.PodSandboxMetadata) string {
	return dockerName("k8s", c.GetName(), pod.GetName(), pod.GetNamespace(), pod.GetUid(), fmt.Sprint(c.GetAttempt()))
}

// dockerName joins parts. Names of Kubernetes have no character that Docker
// refuses; in others such a character is replaced, and a hash keeps the name
// its own.
func dockerName(parts ...string) string {
	name := strings.Join(parts, "_")
	clean := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.', c == '-':
			return c
		}
		return '-'
	}, name)
	if clean == name && strings.Count(name, "_") == len(parts)-1 {
		return name
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return clean + "_" + hex.EncodeToString(sum[:4])
}

// fingerprint identifies a request, so that a retry can be told from another
// request for the same name.
func fingerprint(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(m)
	if err != nil {
		return "" // only strings that are not UTF-8 fail; such requests equal each other
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
