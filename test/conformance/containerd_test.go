package conformance

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podstead/cri/conformance"
	"podstead/cri/remote"
	"podstead/image/imagetest"
	"podstead/test/host"
	"podstead/test/peer"
)

const (
	busyboxRef = "test.local/busybox:1"
	pauseRef   = "test.local/pause:1"
)

// archive writes the images that the suite wants.
func archive(t *testing.T) string {
	t.Helper()
	busybox, err := peer.Busybox()
	if errors.Is(err, peer.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	pause, err := peer.Pause()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "images.tar")
	if err := peer.Archive(path, map[string]v1.Image{busyboxRef: busybox, pauseRef: pause}); err != nil {
		t.Fatal(err)
	}
	return path
}

// registry serves an image on loopback, and returns its reference.
func registry(t *testing.T) string {
	t.Helper()
	return imagetest.Registry(t, map[string]imagetest.Image{"test/pulled:1": imagetest.Busybox(t)}) + "/test/pulled:1"
}

// private serves an image to one user.
func private(t *testing.T) conformance.Private {
	t.Helper()
	images := map[string]imagetest.Image{"test/private:1": imagetest.Busybox(t)}
	return conformance.Private{
		Image:    imagetest.PrivateRegistry(t, images, "me", "hunter2") + "/test/private:1",
		Username: "me", Password: "hunter2",
	}
}

// containerdDeviates tells where containerd 1.6 does not do what the suite
// asks for, which is the CRI of 2026.
var containerdDeviates = map[string]string{
	"runtime/default handler is listed":                     "handlers came in CRI 0.30",
	"runtime/cgroup driver":                                 "RuntimeConfig came in CRI 0.28",
	"sandbox/unknown id":                                    "StopPodSandbox returns NotFound, and critest allows it",
	"container/unknown id":                                  "StopContainer returns NotFound, and critest allows it",
	"stop/a caller that leaves does not stop the stopping":  "the stopping ends with the call, and SIGKILL does not come",
	"stop/by the signal that was asked for":                 "stop_signal came in CRI 0.33",
	"sandbox/resources of the pod":                          "UpdatePodSandboxResources came in CRI 0.33",
	"sandbox/verbose status is JSON":                        "containers_statuses came in CRI 0.27",
	"container/labels and annotations are kept as they are": "user_specified_image came in CRI 0.28",
	"security/an unknown capability is refused":             "such a capability is passed over",
	"security/ambient capabilities":                         "add_ambient_capabilities is ignored",
	"stop/by a real-time signal":                            "stop_signal came in CRI 0.33",
	"stop/SIGTERM is reported when nothing was asked for":   "stop_signal came in CRI 0.33",
	"image/user and details":                                "uid is not set for root, and spec never",
	"image/pull that fails has the kubelet's words":         "its errors have no reasons",
	"mount/options":                                         "mount_options came in CRI 0.37",
	"mount/recursively read-only, refused":                  "recursive_read_only came in CRI 0.30",
	"mount/image volumes":                                   "image mounts came in CRI 0.31",
	"mount/image volumes, refused":                          "image mounts came in CRI 0.31",
	"process/strict groups":                                 "supplemental_groups_policy came in CRI 0.31",
	"userns/refused":                                        "userns_options came in CRI 0.25",
	"exec/inherited output does not hang":                   "waits until the output is closed",
	"exec/too much output is cut, without an error":         "cut at 16 MiB, which makes a message that is too large",
	"log/binary data":                                       "a carriage return before a line's end is dropped",
	"log/all of it is there when the exit is seen":          "the exit is told before the output is read to its end",
	"resources/killed for memory":                           "the OOM killer is told of by an event, which may come after the exit",
	"stats/list holds what runs":                            "exited containers are listed, too",
	"figures/memory without a limit":                        "0 are available",
	"figures/swap":                                          "swap came in CRI 0.28",
	"figures/pressure":                                      "pressure came in CRI 0.33",
	"figures/network":                                       "the default interface alone, without a time",
	"figures/of an exited container":                        "an error, for a task without metrics",
	"metrics/descriptors stay":                              "metrics came in CRI 0.26",
	"metrics/of a pod and its containers":                   "metrics came in CRI 0.26",
	"metrics/OOM kills are counted":                         "metrics came in CRI 0.26",
	"events/of a life":                                      "events came in CRI 0.26",
	"events/in order, each once":                            "events came in CRI 0.26",
	"events/none between subscription and list":             "events came in CRI 0.26",
	"events/one who does not read holds nobody up":          "events came in CRI 0.26",
	"events/of an OOM kill":                                 "events came in CRI 0.26",
	"events/to every subscriber":                            "events came in CRI 0.26",
	"image/list":                                            "the filter is ignored",
	"image/ids are one":                                     "image_id came in CRI 0.30",
	"contract/an exited container has no limits to change":  "they change",
	"contract/creation, start, stop and removal again, after callers who left": "the name of a creation whose caller left stays reserved",
	"contract/what the runtime is stays the same":                              "RuntimeConfig came in CRI 0.28",
	"contract/images for a handler that is not there":                          "runtime_handler of images came in CRI 0.29",
	"contract/images are filtered by every name":                               "the filter is ignored",
	"concurrent/remove many times at once":                                     "an error for all but the first",
	"concurrent/stop and remove many times at once":                            "now and then the CNI plugin of one of them finds that eth0 has gone",
}

// containerdKnown is containerdDeviates with what it takes cgroup v2 to see.
func containerdKnown() map[string]string {
	known := maps.Clone(containerdDeviates)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		known["resources/memory below what is in use is refused"] = "the OCI runtime is not told to look first (checkBeforeUpdate), and cgroup v2 does not refuse"
	}
	return known
}

// TestContainerd runs a part of the suite on containerd, to check the suite
// itself; the whole (PODSTEAD_TEST_WHOLE) takes two minutes.
func TestContainerd(t *testing.T) {
	onContainerd(t, "runc", part("runtime", "sandbox", "container", "exec", "image", "stats"))
}

// TestContainerdOnOurs has containerd run its containers by our OCI runtime. The
// groups are those in which that has a part.
func TestContainerdOnOurs(t *testing.T) {
	ours := filepath.Join(filepath.Dir(os.Getenv(programVariable)), "podstead-oci")
	groups := []string{"process", "exec", "resources"}
	if host.Whole() {
		groups = append(groups, "container", "security", "mount", "stop")
	}
	onContainerd(t, ours, groups)
}

func onContainerd(t *testing.T, runtime string, groups []string) {
	host.Require(t)
	images := archive(t)
	c, err := peer.StartContainerdOn(t.Context(), runtime, filepath.Join(t.TempDir(), "containerd"), pauseRef)
	if errors.Is(err, peer.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.LogTail())
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Import(t.Context(), images); err != nil {
		t.Fatal(err)
	}
	r, err := remote.New(c.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	conformance.Run(t, conformance.Target{
		Runtime: r, Image: busyboxRef, PullImage: registry(t), Private: private(t), CgroupParent: host.Cgroup(),
		LateLog: true, StopsTwice: true, Known: containerdKnown(), Groups: groups,
	})
}
