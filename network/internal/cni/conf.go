// Package cni connects pods by the plugins of a CNI configuration (spec 1.1.0
// and older), which it finds as kubelets' runtimes have always done: the first
// valid file of a directory. It runs the plugins by libcni and keeps its cache;
// who is attached is its caller's to record.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// List is a network: the plugins that are run one after another. It depends on
// no file any more.
type List struct {
	File string
	list *libcni.NetworkConfigList
}

// Name is that of the network.
func (l *List) Name() string { return l.list.Name }

// Config is the whole list, plugins from other files included, as Parse takes it.
func (l *List) Config() []byte { return l.list.Bytes }

// Has tells whether a plugin of the list declares a capability.
func (l *List) Has(capability string) bool {
	return slices.ContainsFunc(l.list.Plugins, func(p *libcni.PluginConfig) bool {
		return p.Network.Capabilities[capability]
	})
}

// A FileError tells why a configuration file is not used.
type FileError struct {
	File string
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("CNI configuration %s: %v", e.File, e.Err) }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// Load returns the first valid configuration of a directory in the order of
// file names, or nil if there is none, and what is wrong with those before it.
// The directory need not exist.
func Load(dir string) (*List, []*FileError) {
	if dir == "" {
		return nil, nil
	}
	files, err := confFiles(dir)
	if err != nil {
		return nil, []*FileError{{dir, err}}
	}
	var bad []*FileError
	for _, file := range files {
		l, err := loadFile(file)
		if err == nil {
			return l, bad
		}
		bad = append(bad, &FileError{file, err})
	}
	return nil, bad
}

// Find returns the network called name among the configurations of a directory,
// the first one in the order of file names.
func Find(dir, name string) (*List, error) {
	files, err := confFiles(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, file := range files {
		l, err := loadFile(file)
		if err != nil {
			errs = append(errs, &FileError{file, err})
		} else if l.Name() == name {
			return l, nil
		}
	}
	return nil, errors.Join(append([]error{fmt.Errorf("no CNI configuration in %s is of the network %q", dir, name)}, errs...)...)
}

func confFiles(dir string) ([]string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	slices.Sort(files)
	return files, err
}

// maxConf bounds a file: a real one has a few KiB.
const maxConf = 1 << 20

func loadFile(file string) (*List, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxConf {
		return nil, errors.New("is not a file of reasonable size")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list *libcni.NetworkConfigList
	if filepath.Ext(file) == ".conflist" {
		list, err = libcni.NetworkConfFromFile(file)
	} else {
		list, err = fromPlugin(data)
	}
	if err != nil {
		return nil, err
	}
	return newList(file, list)
}

// fromPlugin makes a list of the configuration of one plugin. Files that are
// called .conf or .json may hold either.
func fromPlugin(data []byte) (*libcni.NetworkConfigList, error) {
	var kind struct {
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, err
	}
	if kind.Plugins != nil {
		return libcni.NetworkConfFromBytes(data)
	}
	plugin, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if plugin.Network == nil || plugin.Network.Type == "" {
		return nil, errors.New(`no "type"`)
	}
	return libcni.ConfListFromConf(plugin)
}

// Parse reads what Config returned.
func Parse(file string, config []byte) (*List, error) {
	list, err := libcni.NetworkConfFromBytes(config)
	if err != nil {
		return nil, err
	}
	return newList(file, list)
}

var (
	validNetwork = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
	validPlugin  = regexp.MustCompile(`^[a-zA-Z0-9_.-]+$`)
)

// newList checks a list and writes it down anew with all its plugins in it.
func newList(file string, list *libcni.NetworkConfigList) (*List, error) {
	if !validNetwork.MatchString(list.Name) {
		return nil, fmt.Errorf("network name %q is not valid", list.Name)
	}
	if newer, err := version.GreaterThan(list.CNIVersion, version.Current()); err != nil {
		return nil, fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
	} else if newer {
		return nil, fmt.Errorf("cniVersion %s is newer than %s, the newest that is known here", list.CNIVersion, version.Current())
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins")
	}
	whole := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	if list.DisableCheck {
		whole["disableCheck"] = true
	}
	if list.DisableGC {
		whole["disableGC"] = true
	}
	var plugins []json.RawMessage
	for i, p := range list.Plugins {
		if p.Network == nil || !validPlugin.MatchString(p.Network.Type) {
			return nil, fmt.Errorf("plugin %d: type is not valid", i)
		}
		plugins = append(plugins, p.Bytes)
	}
	whole["plugins"] = plugins
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	if list, err = libcni.NetworkConfFromBytes(data); err != nil {
		return nil, err
	}
	return &List{File: file, list: list}, nil
}
