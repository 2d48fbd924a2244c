// Package config is the engine's configuration file: what it may say, its
// defaults, and what of it can change while the engine runs. It is pure: it
// reads no file but the one it is told to, keeps nothing and watches nothing.
// cmd/podstead reads it and hands it to the boxes; nothing needs to be in it for
// a pod to run.
//
//	handlers:                        # OCI runtimes beside the built-in one
//	- name: runc                     # as a RuntimeClass's handler names it
//	- name: kata
//	  type: shim
//	  path: /opt/kata/bin/containerd-shim-kata-v2
//	  podAnnotations: [io.katacontainers.*]
//	defaultHandler: runc             # for pods that name none
//	cgroupDriver: systemd
//	network:
//	  cniConfDir: /etc/cni/net.d
//	images:
//	  pinned: ["registry.k8s.io/pause:*"]
//	streams:
//	  idleTimeout: 4h
//	logs:
//	  maxBytes: 10Mi
//	  maxFiles: 5
//	tracing:
//	  endpoint: localhost:4317
package config

import "time"

// DefaultPath is the file that is read if no other is named and it is there.
const DefaultPath = "/etc/podstead/engine.yaml"

// Config is the file. Fields that only a new start of the engine applies are
// tagged `reload:"restart"`; all others change what is made from then on.
type Config struct {
	// Handlers are the OCI runtimes that pods may name by their RuntimeClass. A
	// pod keeps the handler that it was made with, however it is called later.
	Handlers []Handler `json:"handlers,omitempty"`
	// DefaultHandler is for pods that name none; empty: the built-in one.
	DefaultHandler string `json:"defaultHandler,omitempty"`
	// CgroupDriver is who makes the control groups: cgroupfs (the default), or
	// systemd, of which pods are slices and containers scopes. A kubelet follows
	// it; only the built-in handler can be used with systemd.
	CgroupDriver string  `json:"cgroupDriver,omitempty" reload:"restart"`
	Network      Network `json:"network"`
	Images       Images  `json:"images"`
	Streams      Streams `json:"streams"`
	Logs         Logs    `json:"logs"`
	CDI          CDI     `json:"cdi"`
	NRI          NRI     `json:"nri"`
	SELinux      SELinux `json:"selinux"`
	Hooks        Hooks   `json:"hooks"`
	// Tracing sends a span of each CRI call, and of its parts, to a collector of
	// OpenTelemetry traces; nothing: none are made.
	Tracing *Tracing `json:"tracing,omitempty" reload:"restart"`
}

// Drivers of control groups.
const (
	Cgroupfs = "cgroupfs"
	Systemd  = "systemd"
)

// Types of handlers.
const (
	Builtin = "builtin" // the launch program
	OCI     = "oci"     // a program with runc's command line
	Shim    = "shim"    // a containerd shim, protocol v2
)

// Handler is an OCI runtime.
type Handler struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"` // OCI if empty
	// Path of the program, or its name in PATH. Empty: Name for type OCI,
	// containerd-shim-NAME-v2 for type Shim.
	Path string `json:"path,omitempty"`
	// Args go before the runtime's command (type OCI).
	Args []string `json:"args,omitempty"`
	// Root is where the runtime keeps its state; empty: a directory of its own
	// below the run directory.
	Root string `json:"root,omitempty"`
	// ConfigPath is the runtime's own configuration file (type Shim).
	ConfigPath string `json:"configPath,omitempty"`
	// PodAnnotations and ContainerAnnotations are which annotations the runtime
	// gets to see: names, or beginnings of names with a * at the end.
	PodAnnotations       []string `json:"podAnnotations,omitempty"`
	ContainerAnnotations []string `json:"containerAnnotations,omitempty"`
}

// Network says how pods are connected.
type Network struct {
	CNIConfDir string   `json:"cniConfDir,omitempty"`
	CNIBinDirs []string `json:"cniBinDirs,omitempty"`
	// CNINetworks are further networks of CNIConfDir, by name, for each pod.
	CNINetworks []string `json:"cniNetworks,omitempty"`
	// PodCIDR is that of the built-in network: one of IPv4, one of IPv6, or both
	// separated by a comma. Empty: free ones.
	PodCIDR string `json:"podCIDR,omitempty" reload:"restart"`
	// ReadySlots is how many pod networks the built-in network keeps made ahead
	// of time, once it has had a pod; 0: none.
	ReadySlots int `json:"readySlots"`
}

// Images says where images come from.
type Images struct {
	// CertsDir has HOST/hosts.toml: mirrors, certificates.
	CertsDir string `json:"certsDir,omitempty"`
	// Pinned are images that must not be collected: names with tag or digest, or
	// beginnings of such with a * at the end.
	Pinned []string `json:"pinned,omitempty"`
	// ParallelLayers is how many layers are fetched at a time, by all pulls.
	ParallelLayers int `json:"parallelLayers,omitempty"`
	// StallTimeout ends a connection that brings no byte for so long; it is
	// tried again.
	StallTimeout Duration `json:"stallTimeout,omitempty"`
}

// Streams is about exec, attach and port-forward.
type Streams struct {
	Address         string   `json:"address,omitempty" reload:"restart"`
	IdleTimeout     Duration `json:"idleTimeout,omitempty"`
	CreationTimeout Duration `json:"creationTimeout,omitempty"`
}

// Logs bounds the log of a container.
type Logs struct {
	MaxBytes Bytes `json:"maxBytes,omitempty"` // of one file; 0: no bound
	MaxFiles int   `json:"maxFiles,omitempty"` // kept, the live one included
}

// CDI is about devices that containers get by name.
type CDI struct {
	// Dirs have the files that describe them; the later ones win.
	Dirs []string `json:"dirs,omitempty"`
}

// Hooks are programs that containers get called, as files of oci-hooks(5) say.
type Hooks struct {
	// Dirs have them, *.json; of files of one name the later directory's counts.
	Dirs []string `json:"dirs,omitempty"`
}

// SELinux is about the labels of pods, on hosts that have it.
type SELinux struct {
	// Disabled leaves out labels, for hosts whose policy has nothing for
	// containers but lxc_contexts, or the wrong things.
	Disabled bool `json:"disabled,omitempty"`
}

// Tracing is where traces are sent, as the kubelet's configuration says it.
type Tracing struct {
	// Endpoint is the collector's, for OTLP over gRPC; empty: localhost:4317.
	Endpoint string `json:"endpoint,omitempty"`
	// SamplingRatePerMillion is how many of a million calls are traced whose
	// client traces nothing; where the client does, its choice counts.
	SamplingRatePerMillion int32 `json:"samplingRatePerMillion,omitempty"`
}

// NRI is about plugins: programs beside the engine that are told of pods and
// containers and may adjust them.
type NRI struct {
	Disabled bool `json:"disabled,omitempty" reload:"restart"`
	// Socket is where plugins connect; empty: /var/run/nri/nri.sock, or nri.sock
	// in the run directory if that is not the default one.
	Socket string `json:"socket,omitempty" reload:"restart"`
	// PluginDir has plugins that are started with the engine, ConfigDir their
	// configuration; empty: /opt/nri/plugins and /etc/nri/conf.d, or none if the
	// run directory is not the default one.
	PluginDir string `json:"pluginDir,omitempty" reload:"restart"`
	ConfigDir string `json:"configDir,omitempty" reload:"restart"`
	// RequiredPlugins must be connected for a container to be created, unless it
	// bears the annotation RequiredUnless with the value "true".
	RequiredPlugins []string `json:"requiredPlugins,omitempty" reload:"restart"`
	RequiredUnless  string   `json:"requiredUnless,omitempty" reload:"restart"`
	// RegistrationTimeout is the patience with a plugin that has connected or was
	// started, RequestTimeout that with each of its answers.
	RegistrationTimeout Duration `json:"registrationTimeout,omitempty" reload:"restart"`
	RequestTimeout      Duration `json:"requestTimeout,omitempty" reload:"restart"`
}

// Default is what holds without a file.
func Default() Config {
	return Config{
		Network: Network{CNIConfDir: "/etc/cni/net.d", CNIBinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}, ReadySlots: 8},
		Images: Images{
			CertsDir: "/etc/containerd/certs.d", ParallelLayers: 3, StallTimeout: Duration{Duration: time.Minute},
		},
		Streams: Streams{
			Address: "127.0.0.1:0", IdleTimeout: Duration{Duration: 4 * time.Hour}, CreationTimeout: Duration{Duration: 30 * time.Second},
		},
		Logs: Logs{MaxBytes: Bytes{N: 10 << 20}, MaxFiles: 5},
		CDI:  CDI{Dirs: []string{"/etc/cdi", "/var/run/cdi"}},
		NRI: NRI{
			RegistrationTimeout: Duration{Duration: 5 * time.Second}, RequestTimeout: Duration{Duration: 2 * time.Second},
		},
	}
}
