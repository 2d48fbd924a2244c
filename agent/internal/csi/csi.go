// Package csi has CSI drivers (Container Storage Interface 1.x) stage and publish
// volumes on this node: the node's half of it. There is no controller here:
// drivers that have to attach a volume before it can be staged are told nothing
// of it, and volumes are not created.
//
// What was published is written down beside it (vol_data.json, as the kubelet
// does), so that a later run of the agent can undo it.
package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"podstead/sys"
)

// callTimeout bounds a call of a driver (the kubelet's).
const callTimeout = 2 * time.Minute

// Drivers are those that are registered. The methods of a nil one say that there
// are none.
type Drivers struct {
	Node string // its name
	// Dir is for staging: <driver>/<hash of the volume>/globalmount.
	Dir string
	// Changed is called when there are other drivers than before.
	Changed func()
	Log     *slog.Logger

	mu      sync.Mutex
	drivers map[string]*driver
	staging map[string]chan struct{} // paths that are staged or unstaged now; closed then
}

type driver struct {
	endpoint string
	conn     *grpc.ClientConn
	node     spec.NodeClient
	stages   bool // STAGE_UNSTAGE_VOLUME
	groups   bool // VOLUME_MOUNT_GROUP
	measures bool // GET_VOLUME_STATS
}

// Take registers a driver (registry.Taker).
func (d *Drivers) Take(ctx context.Context, name, endpoint string, versions []string) error {
	if !slices.ContainsFunc(versions, func(v string) bool { return strings.HasPrefix(strings.TrimPrefix(v, "v"), "1.") }) {
		return fmt.Errorf("versions: %v, want one of CSI 1", versions)
	}
	const longest = 63 // it becomes the name of a directory, too
	if len(name) > longest || len(validation.IsDNS1123Subdomain(strings.ToLower(name))) > 0 {
		return fmt.Errorf("name: %q is no name of a driver", name)
	}
	conn, err := grpc.NewClient("unix://"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	v := &driver{endpoint: endpoint, conn: conn, node: spec.NewNodeClient(conn)}
	if _, err = v.node.NodeGetInfo(ctx, &spec.NodeGetInfoRequest{}); err == nil {
		err = v.ask(ctx)
	}
	if err != nil {
		conn.Close()
		return fmt.Errorf("driver %s: %w", name, err)
	}
	d.mu.Lock()
	if d.drivers == nil {
		d.drivers = map[string]*driver{}
	}
	old := d.drivers[name]
	d.drivers[name] = v
	d.mu.Unlock()
	if old != nil {
		old.conn.Close()
	}
	go d.Changed()
	return nil
}

func (v *driver) ask(ctx context.Context) error {
	resp, err := v.node.NodeGetCapabilities(ctx, &spec.NodeGetCapabilitiesRequest{})
	if err != nil {
		return err
	}
	for _, c := range resp.Capabilities {
		switch c.GetRpc().GetType() {
		case spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME:
			v.stages = true
		case spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP:
			v.groups = true
		case spec.NodeServiceCapability_RPC_GET_VOLUME_STATS:
			v.measures = true
		}
	}
	return nil
}

// Lose forgets a driver. What it published stays.
func (d *Drivers) Lose(name, endpoint string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.drivers[name]; v != nil && v.endpoint == endpoint {
		v.conn.Close()
		delete(d.drivers, name)
	}
}

func (d *Drivers) find(name string) (*driver, error) {
	if d == nil {
		return nil, fmt.Errorf("driver name %s not found: no CSI drivers are served here, see --root-dir", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.drivers[name]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("driver name %s not found in the list of registered CSI drivers", name)
}

// Volume is one that a pod uses.
type Volume struct {
	Driver, Handle string
	FSType         string
	ReadOnly       bool
	Modes          []corev1.PersistentVolumeAccessMode
	MountOptions   []string
	Attributes     map[string]string // volume_context
	Ephemeral      bool              // of the pod's own, as its definition says
	FSGroup        *int64
	// Secrets for the driver.
	StageSecrets, PublishSecrets map[string]string
	// Dir is the pod's directory of the volume; it is mounted on Dir/mount.
	Dir string
	Pod *corev1.Pod
}

// record is vol_data.json.
type record struct {
	Driver    string `json:"driverName"`
	Handle    string `json:"volumeHandle"`
	Ephemeral bool   `json:"ephemeral,omitempty"`
	Staged    string `json:"stagingPath,omitempty"`
	Published bool   `json:"published,omitempty"`
	Grouped   bool   `json:"grouped,omitempty"` // by the driver
}

const (
	recordFile = "vol_data.json"
	mountDir   = "mount"
)

// EphemeralHandle is the ID of a pod's own volume.
func EphemeralHandle(pod *corev1.Pod, volume string) string {
	sum := sha256.Sum256([]byte(volume + pod.Namespace + pod.Name + string(pod.UID)))
	return "csi-" + hex.EncodeToString(sum[:])
}

// Publish mounts a volume for a pod, unless that is done; it tells whether the
// driver has given it to the pod's fsGroup.
func (d *Drivers) Publish(ctx context.Context, v Volume) (grouped bool, err error) {
	rec, err := readRecord(v.Dir)
	if err != nil {
		return false, err
	}
	if rec != nil && rec.Published && sys.IsMount(filepath.Join(v.Dir, mountDir)) {
		return rec.Grouped, nil // it is still there, which it is not after a reboot
	}
	drv, err := d.find(v.Driver)
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(v.Dir, 0o750); err != nil {
		return false, err
	}
	next := record{Driver: v.Driver, Handle: v.Handle, Ephemeral: v.Ephemeral}
	if drv.stages && !v.Ephemeral {
		next.Staged = d.stagingPath(v.Driver, v.Handle)
	}
	// Before anything is done: whatever comes, it will be undone.
	if err := writeRecord(v.Dir, next); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if next.Staged != "" {
		if err := d.stage(ctx, drv, v, next.Staged); err != nil {
			return false, err
		}
	}
	values := map[string]string{}
	for key, value := range v.Attributes {
		values[key] = value
	}
	values["csi.storage.k8s.io/pod.name"] = v.Pod.Name
	values["csi.storage.k8s.io/pod.namespace"] = v.Pod.Namespace
	values["csi.storage.k8s.io/pod.uid"] = string(v.Pod.UID)
	values["csi.storage.k8s.io/serviceAccount.name"] = v.Pod.Spec.ServiceAccountName
	values["csi.storage.k8s.io/ephemeral"] = fmt.Sprint(v.Ephemeral)
	_, err = drv.node.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{
		VolumeId: v.Handle, StagingTargetPath: next.Staged, TargetPath: filepath.Join(v.Dir, mountDir), VolumeCapability: v.capability(drv),
		Readonly: v.ReadOnly, Secrets: v.PublishSecrets, VolumeContext: values,
	})
	if err != nil {
		return false, fmt.Errorf("driver %s: NodePublishVolume: %w", v.Driver, err)
	}
	next.Published, next.Grouped = true, drv.groups
	return next.Grouped, writeRecord(v.Dir, next)
}

func (d *Drivers) stagingPath(driver, handle string) string {
	sum := sha256.Sum256([]byte(handle))
	return filepath.Join(d.Dir, driver, hex.EncodeToString(sum[:]), "globalmount")
}

// stage has the driver make a volume usable on this node, for all pods. Calling
// it again is harmless.
func (d *Drivers) stage(ctx context.Context, drv *driver, v Volume, path string) error {
	give, err := d.take(ctx, path)
	if err != nil {
		return fmt.Errorf("driver %s: wait for the volume's staging: %w", v.Driver, err)
	}
	defer give()
	if err := os.MkdirAll(path, 0o750); err != nil {
		return err
	}
	_, err = drv.node.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{
		VolumeId: v.Handle, StagingTargetPath: path, VolumeCapability: v.capability(drv), Secrets: v.StageSecrets, VolumeContext: v.Attributes,
	})
	if err != nil {
		return fmt.Errorf("driver %s: NodeStageVolume: %w", v.Driver, err)
	}
	return writeUser(path, v.Dir)
}

// take waits until nobody else stages or unstages at a path: a driver that does
// not answer for one volume holds up no other.
func (d *Drivers) take(ctx context.Context, path string) (give func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.staging[path] != nil {
		busy := d.staging[path]
		d.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			err = ctx.Err()
		}
		d.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	if d.staging == nil {
		d.staging = map[string]chan struct{}{}
	}
	done := make(chan struct{})
	d.staging[path] = done
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.staging, path)
		close(done)
	}, nil
}

// writeUser notes that a volume's directory uses what is staged at a path, in
// users beside it: a link for each.
func writeUser(path, dir string) error {
	users := filepath.Join(filepath.Dir(path), "users")
	if err := os.MkdirAll(users, 0o750); err != nil {
		return err
	}
	err := os.Symlink(dir, filepath.Join(users, userName(dir)))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func userName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:])
}

func (v Volume) capability(drv *driver) *spec.VolumeCapability {
	mount := &spec.VolumeCapability_MountVolume{FsType: v.FSType, MountFlags: v.MountOptions}
	if drv.groups && v.FSGroup != nil {
		mount.VolumeMountGroup = fmt.Sprint(*v.FSGroup)
	}
	mode := spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	for _, m := range v.Modes {
		switch m {
		case corev1.ReadOnlyMany:
			mode = spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
		case corev1.ReadWriteMany:
			mode = spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
		}
	}
	return &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &spec.VolumeCapability_Mount{Mount: mount}}
}

// Unpublish undoes all of a pod; volumes is the directory of its CSI volumes.
// Without the driver a volume that is mounted stays, and so does the pod.
func (d *Drivers) Unpublish(ctx context.Context, volumes string) error {
	entries, err := os.ReadDir(volumes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	failed := []error{err}
	for _, e := range entries {
		if err := d.unpublish(ctx, filepath.Join(volumes, e.Name())); err != nil {
			failed = append(failed, fmt.Errorf("volume %q: %w", e.Name(), err))
		}
	}
	return errors.Join(failed...)
}

func (d *Drivers) unpublish(ctx context.Context, dir string) error {
	rec, err := readRecord(dir)
	if err != nil || rec == nil {
		return err
	}
	drv, err := d.find(rec.Driver)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	target := filepath.Join(dir, mountDir)
	if _, err := drv.node.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: rec.Handle, TargetPath: target}); err != nil {
		return fmt.Errorf("driver %s: NodeUnpublishVolume: %w", rec.Driver, err)
	}
	if sys.IsMount(target) {
		return fmt.Errorf("driver %s: %s is still mounted after NodeUnpublishVolume", rec.Driver, target)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // a driver that leaves data: it is not ours to delete
	}
	if rec.Staged != "" {
		if err := d.unstage(ctx, drv, rec, dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(dir, recordFile))
}

// unstage ends the use of a volume on this node with its last user.
func (d *Drivers) unstage(ctx context.Context, drv *driver, rec *record, dir string) error {
	give, err := d.take(ctx, rec.Staged)
	if err != nil {
		return fmt.Errorf("driver %s: wait for the volume's staging: %w", rec.Driver, err)
	}
	defer give()
	users := filepath.Join(filepath.Dir(rec.Staged), "users")
	if err := os.Remove(filepath.Join(users, userName(dir))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	left, err := os.ReadDir(users)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
		return err
	}
	if _, err := drv.node.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: rec.Handle, StagingTargetPath: rec.Staged}); err != nil {
		return fmt.Errorf("driver %s: NodeUnstageVolume: %w", rec.Driver, err)
	}
	for _, name := range []string{rec.Staged, users, filepath.Dir(rec.Staged)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func readRecord(dir string) (*record, error) {
	name := filepath.Join(dir, recordFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rec := &record{}
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return rec, nil
}

func writeRecord(dir string, rec record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(filepath.Join(dir, recordFile), data, 0o600, true)
}
