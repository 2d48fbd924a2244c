package docker

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/mount"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/tree"
)

var propagations = map[runtimeapi.MountPropagation]mount.Propagation{
	runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           mount.PropagationRPrivate,
	runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: mount.PropagationRSlave,
	runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     mount.PropagationRShared,
}

// findMounts translates the mounts of a container. A host path that is missing
// becomes a directory, as on every runtime. What Docker has no word for is
// mounted by us first, see prepared.
func (r *Runtime) findMounts(ctx context.Context, k *creation) error {
	for i, m := range k.config.Mounts {
		if err := r.findMount(ctx, k, i, m); err != nil {
			return fmt.Errorf("mounts[%d] (%s): %w", i, m.ContainerPath, err)
		}
	}
	return nil
}

func (r *Runtime) findMount(ctx context.Context, k *creation, i int, m *runtimeapi.Mount) error {
	propagation, ok := propagations[m.Propagation]
	if !ok {
		return invalid("propagation %v is unknown", m.Propagation)
	}
	to := mount.Mount{
		Type: mount.TypeBind, Target: filepath.Clean("/" + m.ContainerPath), ReadOnly: m.Readonly,
		BindOptions: &mount.BindOptions{Propagation: propagation},
	}
	var err error
	switch {
	case m.Image.GetImage() != "":
		err = r.mountImage(ctx, k, i, m, &to)
	default:
		if to.Source, err = tree.HostPath(m.HostPath); err != nil {
			return err
		}
		if m.RecursiveReadOnly || len(m.MountOptions) > 0 {
			to.Source, err = r.mountHostPath(k, i, m, to.Source)
			// It is read-only by itself. Were Docker to make it so, it would do that
			// by mounting it again without the other options.
			to.ReadOnly = false
		}
	}
	if err != nil {
		return err
	}
	if m.SelinuxRelabel && r.hasSecurity("selinux") {
		return k.bindRelabelled(to)
	}
	if to.ReadOnly && r.speaks("1.44") {
		to.BindOptions.ReadOnlyNonRecursive = true // the CRI's meaning of read-only
	}
	k.mounts = append(k.mounts, to)
	return nil
}

// bindRelabelled uses the older form of a mount: the newer has no word for
// labels.
func (k *creation) bindRelabelled(m mount.Mount) error {
	if strings.ContainsRune(m.Source+m.Target, ':') {
		return invalid("selinux_relabel of a path with a colon is not possible on Docker")
	}
	mode := "rw"
	if m.ReadOnly {
		mode = "ro"
	}
	k.binds = append(k.binds, m.Source+":"+m.Target+":"+mode+",Z,"+string(m.BindOptions.Propagation))
	return nil
}
