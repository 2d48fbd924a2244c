package agent

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"podstead/agent/client"
	"podstead/agent/internal/csi"
	"podstead/agent/internal/flight"
	"podstead/agent/internal/volume"
)

// publish has CSI drivers mount the pod's volumes, and returns all volumes as
// they are then. Volumes that are mounted cost nothing.
func (j job) publish(ctx context.Context) (volume.Pod, error) {
	volumes := j.volumes()
	var failed []error
	for i := range j.pod.Spec.Volumes {
		v := &j.pod.Spec.Volumes[i]
		req, err := j.csiVolume(v, volumes)
		if err != nil {
			failed = append(failed, &volume.NotReady{Volume: v.Name, Err: err})
			continue
		}
		if req == nil {
			continue
		}
		done := flight.Part(ctx, client.FlightStep, fmt.Sprintf("volume %s (CSI driver %s)", v.Name, req.Driver))
		grouped, err := j.csi.Publish(ctx, *req)
		done(err)
		if err != nil {
			failed = append(failed, &volume.NotReady{Volume: v.Name, Err: err})
		}
		if claim, ok := volumes.Claims[v.Name]; ok {
			// As the kubelet without a word of the driver: what has a file system
			// and is written by one node.
			claim.Own = err == nil && !grouped && req.FSType != "" && !req.ReadOnly
			volumes.Claims[v.Name] = claim
		}
	}
	return volumes, errors.Join(failed...)
}

// csiVolume is what a driver is asked for, nil for other volumes.
func (j job) csiVolume(v *corev1.Volume, volumes volume.Pod) (req *csi.Volume, err error) {
	req = &csi.Volume{Dir: volumes.CSI(v.Name), Pod: j.pod, FSGroup: j.pod.Spec.SecurityContext.FSGroup}
	if s := v.CSI; s != nil {
		req.Driver, req.Attributes, req.Ephemeral, req.Handle = s.Driver, s.VolumeAttributes, true, csi.EphemeralHandle(j.pod, v.Name)
		req.ReadOnly = s.ReadOnly != nil && *s.ReadOnly
		if s.FSType != nil {
			req.FSType = *s.FSType
		}
		if s.NodePublishSecretRef != nil {
			req.PublishSecrets, err = j.secretData(&corev1.SecretReference{Namespace: j.pod.Namespace, Name: s.NodePublishSecretRef.Name})
		}
		return req, err
	}
	if v.PersistentVolumeClaim == nil || !volumes.Claims[v.Name].CSI {
		return nil, nil
	}
	storage, err := j.objs.Claim(j.pod.Namespace, v.PersistentVolumeClaim.ClaimName)
	if err != nil || storage.CSI == nil {
		return nil, err
	}
	s := storage.CSI.CSI
	req.Driver, req.Handle, req.FSType, req.Attributes = s.Driver, s.VolumeHandle, s.FSType, s.VolumeAttributes
	req.ReadOnly = s.ReadOnly || v.PersistentVolumeClaim.ReadOnly
	req.Modes, req.MountOptions = storage.CSI.AccessModes, storage.CSI.MountOptions
	if req.StageSecrets, err = j.secretData(s.NodeStageSecretRef); err == nil {
		req.PublishSecrets, err = j.secretData(s.NodePublishSecretRef)
	}
	return req, err
}

// secretData is what a driver is told of a Secret.
func (j job) secretData(ref *corev1.SecretReference) (map[string]string, error) {
	if ref == nil {
		return nil, nil
	}
	s := j.objs.Secret(ref.Namespace, ref.Name)
	if s == nil {
		return nil, fmt.Errorf("secret %q not found", ref.Namespace+"/"+ref.Name)
	}
	out := map[string]string{}
	for key, value := range s.Data {
		out[key] = string(value)
	}
	return out, nil
}

// unpublish has the drivers unmount all that is the pod's.
func (j job) unpublish(ctx context.Context) error {
	return j.csi.Unpublish(ctx, volume.Pod{Dir: j.podDir(string(j.pod.UID))}.CSI(""))
}
