package engine

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/selinux"
	"podstead/engine/internal/spec"
	"podstead/sys"
)

// sandboxFile is one of the files that the engine makes for a pod.
func (e *Engine) sandboxFile(id, name string) string {
	return filepath.Join(e.sandboxRecords.Path(id), name)
}

// writeSandboxFiles writes what containers get as /etc/hostname, /etc/hosts
// and /etc/resolv.conf, unless the client mounts its own.
func (e *Engine) writeSandboxFiles(s *sandbox) error {
	rec := s.record()
	resolv, err := resolvConf(rec.config().GetDnsConfig())
	if err != nil {
		return err
	}
	hosts, err := hostsFile(&rec)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"hostname":    []byte(rec.Hostname + "\n"),
		"hosts":       hosts,
		"resolv.conf": resolv,
	} {
		// Read by users other than root inside the container; the directory
		// above is closed to those outside.
		if err := os.WriteFile(e.sandboxFile(s.id, name), content, 0o644); err != nil {
			return err
		}
		uid, gid := rec.mappedRoot()
		if err := os.Lchown(e.sandboxFile(s.id, name), uid, gid); err != nil {
			return err
		}
		if err := selinux.LabelFile(e.sandboxFile(s.id, name), rec.Labels.Shared()); err != nil {
			return err
		}
	}
	return nil
}

// resolvConf writes the resolver's file, or copies the host's if the request
// says nothing.
func resolvConf(d *runtimeapi.DNSConfig) ([]byte, error) {
	var b bytes.Buffer
	if len(d.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	if b.Len() > 0 {
		return b.Bytes(), nil
	}
	return readOrEmpty("/etc/resolv.conf")
}

func hostsFile(r *sandboxRecord) ([]byte, error) {
	if r.hostNetwork() {
		return readOrEmpty("/etc/hosts")
	}
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range r.IPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, r.Hostname)
	}
	return b.Bytes(), nil
}

func readOrEmpty(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil, nil
	}
	return b, err
}

// defaultSysctls let a process without privileges bind low ports and ping in
// a network of its own, where neither can harm anybody.
var defaultSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

// setSysctls writes the request's sysctls inside the pod's namespaces, after the
// network is there, since some belong to an interface.
func (e *Engine) setSysctls(s *sandbox) error {
	rec := s.record()
	wanted := map[string]string{}
	if !rec.hostNetwork() {
		maps.Copy(wanted, defaultSysctls)
	}
	maps.Copy(wanted, rec.config().GetLinux().GetSysctls())
	if len(wanted) == 0 {
		return nil
	}
	namespaces, err := openNamespaces(map[string]int{
		e.netnsPath(&rec): unix.CLONE_NEWNET,
		e.ipcPath(&rec):   unix.CLONE_NEWIPC,
	})
	if err != nil {
		return err
	}
	defer func() {
		for f := range namespaces {
			f.Close()
		}
	}()
	return sys.OnDisposableThread(func() error {
		for f, kind := range namespaces {
			if err := unix.Setns(int(f.Fd()), kind); err != nil {
				return fmt.Errorf("join %s: %w", f.Name(), err)
			}
		}
		if err := writeSysctls(&rec, wanted, func(key string) bool { return strings.HasPrefix(key, "net") }); err != nil {
			return err
		}
		if err := becomeRootOf(&rec); err != nil {
			return err
		}
		return writeSysctls(&rec, wanted, func(key string) bool { return !strings.HasPrefix(key, "net") })
	})
}

// writeSysctls writes those of wanted that which takes. One that is a default
// and cannot be set is passed over.
func writeSysctls(rec *sandboxRecord, wanted map[string]string, which func(key string) bool) error {
	for key, value := range wanted {
		if !which(key) {
			continue
		}
		err := writeSysctl(spec.SysctlPath(key), value)
		if _, asked := rec.config().GetLinux().GetSysctls()[key]; err != nil && asked {
			return fmt.Errorf("linux.sysctls: %s: %w", key, err)
		}
	}
	return nil
}

func (e *Engine) ipcPath(r *sandboxRecord) string {
	if r.hostIPC() {
		return ""
	}
	return e.namespacePath(r.ID, sys.IPCNamespace)
}

// openNamespaces opens files by path, with the kind of each; "" is skipped.
func openNamespaces(paths map[string]int) (map[*os.File]int, error) {
	open := map[*os.File]int{}
	for path, kind := range paths {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			for f := range open {
				f.Close()
			}
			return nil, err
		}
		open[f] = kind
	}
	return open, nil
}

// writeSysctl writes a file below /proc/sys of the calling thread. The kernel
// takes the namespace of the thread that opens the file.
func writeSysctl(path, value string) error {
	f, err := os.OpenFile(filepath.Join("/proc/sys", path), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
