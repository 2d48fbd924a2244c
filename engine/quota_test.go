package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/engine/internal/disk"
	"podstead/sys/quota"
	"podstead/sys/quota/quotatest"
)

// hideVariable has the test binary, in a container, give the directory that it
// names to another project.
const hideVariable = "PODSTEAD_TEST_HIDE"

func hideInProject(dir string) {
	if err := quota.Assign(dir, 7); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// newNodeWithProjects is a node with the engine's state on a file system that
// counts projects. In the end no project may have anything there.
func newNodeWithProjects(t *testing.T, kind string) *node {
	n := newNode(t)
	if err := n.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	// The node's own end comes after the file system's.
	t.Cleanup(func() { n.start() })
	quotatest.Mount(t, kind, n.cfg.StateDir)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		// XFS frees a moment later.
		eventually(t, "no project has anything", func() bool { return len(quotatest.Used(t, n.cfg.StateDir)) == 0 })
	})
	n.start()
	t.Cleanup(n.end)
	if n.projects == nil {
		t.Fatal("the file system does not count projects")
	}
	return n
}

// inUserNamespace puts pod and container into one.
func inUserNamespace() (func(*runtimeapi.PodSandboxConfig), func(*runtimeapi.ContainerConfig)) {
	mapping := []*runtimeapi.IDMapping{{HostId: 200000, Length: 65536}}
	options := &runtimeapi.NamespaceOption{
		Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping},
	}
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = options },
		func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions = options }
}

// layer is what the container's stats say of its writable layer.
func (n *node) layer(c string) quota.Usage {
	n.t.Helper()
	r, err := n.ContainerStats(context.Background(), &runtimeapi.ContainerStatsRequest{ContainerId: c})
	if err != nil {
		n.t.Fatal(err)
	}
	l := r.GetStats().GetWritableLayer()
	return quota.Usage{Bytes: l.GetUsedBytes().GetValue(), Inodes: l.GetInodesUsed().GetValue()}
}

// walked is what a walk finds in the container's layer, overlay's own directory
// included.
func (n *node) walked(c string) quota.Usage {
	n.t.Helper()
	var sum quota.Usage
	s := disk.NewSurveyor(n.life, n.worker.Go, n.log, nil)
	for _, dir := range []string{"upper", "work"} {
		var l disk.Layer
		<-s.Survey(&l, disk.Tree{Dir: n.containerFile(c, dir)}, 1)
		u, _ := l.Usage()
		sum.Bytes, sum.Inodes = sum.Bytes+u.Bytes, sum.Inodes+u.Inodes
	}
	return sum
}

// TestWritableLayerIsAProject: the kernel's figures are those of a walk, whatever
// a container does to its image's files, and also know what is deleted and open.
func TestWritableLayerIsAProject(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind, func(t *testing.T) {
			n := newNodeWithProjects(t, kind)
			inPod, inContainer := inUserNamespace()
			for name, c := range map[string]string{
				"host's user namespace": n.begin(n.run(n.pod()), n.script(useLayer)),
				"user namespace":        n.begin(n.run(n.pod(inPod)), n.script(useLayer, inContainer)),
			} {
				n.ready(c)
				unix.Sync() // XFS gives back what it has kept ready
				var told, walked quota.Usage
				eventually(t, name+": quota and walk agree", func() bool {
					told, walked = n.layer(c), n.walked(c)
					return told == walked
				})
				if walked.Bytes < 4<<20 || walked.Inodes < 100 {
					t.Errorf("%s: usage is %+v", name, walked)
				}
				n.sh(c, `exec 3>/gone; rm /gone; (exec sleep 1000) >/dev/null 2>&1 & head -c 2000000 /dev/zero >&3`)
				if told = n.layer(c); told.Bytes < walked.Bytes+2000000 {
					t.Errorf("%s: with a deleted file that is open usage is %+v, was %+v", name, told, walked)
				}
			}
		})
	}
}

// useLayer copies up, replaces, moves and hides files of the image, and makes some.
const useLayer = `set -e; mkdir /many; for i in $(seq 100); do echo $i >/many/$i; done; mv /many /more
	cp /bin/busybox /tmp/x; ln /tmp/x /tmp/y; head -c 3000000 /dev/zero >/zeros; mv /zeros /home/zeros; ln -s a /link
	chmod 700 /bin/busybox; mv /bin/cat /bin/dog; rm /bin/yes /etc/group; echo x >>/etc/passwd; rm -r /var; mkdir /var; touch /var/x
	truncate -s 1G /sparse; ` + forever

// TestProjectsSurvive: a container's project is its own until it is removed,
// whatever becomes of the engine.
func TestProjectsSurvive(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind, func(t *testing.T) {
			n := newNodeWithProjects(t, kind)
			pod := n.run(n.pod())
			c := n.ready(n.begin(pod, n.script("head -c 1000000 /dev/zero >/file; "+forever)))
			project := mustContainerRecord(t, n, c).Project
			n.restart()
			if used := n.layer(c); used.Bytes < 1000000 {
				t.Errorf("after a restart usage is %+v", used)
			}
			other := mustContainerRecord(t, n, n.create(pod, n.script("true"))).Project
			if project == 0 || other == 0 || project == other {
				t.Errorf("projects are %d and %d", project, other)
			}
			if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
				t.Fatal(err)
			}
			for _, p := range []uint32{project, other} {
				eventually(t, "a project is empty", func() bool {
					u, err := n.projects.Usage(p)
					return err == nil && u == quota.Usage{}
				})
			}
		})
	}
}

// TestContainerThatHidesItsFiles: without a user namespace a container can give
// its files to another project. They are found.
func TestContainerThatHidesItsFiles(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range quotatest.Kinds {
		t.Run(kind, func(t *testing.T) {
			n := newNodeWithProjects(t, kind)
			thief := func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/hide", HostPath: program, Readonly: true}}
			}
			const hide = "mkdir /dir; " + hideVariable + "=/dir /hide; head -c 3000000 /dev/zero >/dir/file; "
			c := n.ready(n.begin(n.run(n.pod()), n.script(hide+forever, thief)))
			project := mustContainerRecord(t, n, c).Project
			if u, err := n.projects.Usage(project); err != nil || u.Bytes >= 3000000 {
				t.Fatalf("nothing is hidden: %+v, %v", u, err)
			}
			eventually(t, "what is hidden is found", func() bool { return n.layer(c).Bytes >= 3000000 })

			inPod, inContainer := inUserNamespace()
			c = n.ready(n.begin(n.run(n.pod(inPod)), n.script(hide+forever, thief, inContainer)))
			if u := n.layer(c); u.Bytes < 3000000 {
				t.Errorf("in a user namespace usage is %+v", u)
			}
			if _, err := os.Stat(filepath.Join(n.containerFile(c, "upper"), "dir/file")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKilledWithProjects: of the lives of engines that were killed no project is
// left, and no two containers have one.
func TestKilledWithProjects(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind, func(t *testing.T) {
			n := newNodeWithProjects(t, kind)
			n.killEngines(8, func() {
				of := map[uint32]string{}
				for _, c := range n.allContainers() {
					p := c.record().Project
					if other, ok := of[p]; ok || p == 0 {
						t.Errorf("container %s has project %d, as has %q", c.id, p, other)
					}
					of[p] = c.id
				}
			})
		})
	}
}

// TestCheckpointWithProjects: what a restore brings back is its container's.
func TestCheckpointWithProjects(t *testing.T) {
	needCRIU(t)
	for _, kind := range quotatest.Kinds {
		t.Run(kind, func(t *testing.T) {
			n := newNodeWithProjects(t, kind)
			pod := n.run(n.pod())
			const many = "head -c 3000000 /dev/zero >/zeros; mkdir /dir; for i in $(seq 100); do echo $i >/dir/$i; done; rm -r /etc; "
			c := n.begin(pod, n.script(many+counting))
			eventually(t, "a first count", func() bool { return len(n.sh(c, "cat /count").Stdout) > 0 })
			archive := filepath.Join(t.TempDir(), "archive.tar")
			if _, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: c, Location: archive}); err != nil {
				t.Fatal(err)
			}
			if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
				t.Fatal(err)
			}
			restored := n.begin(pod, n.script("x", func(c *runtimeapi.ContainerConfig) { c.Image.Image = archive }))
			n.countsFrom(restored, n.count(restored))
			n.restart()
			n.countsFrom(restored, n.count(restored))
			if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: restored}); err != nil {
				t.Fatal(err)
			}
			n.exited(restored)
			unix.Sync() // XFS gives back what it has kept ready
			var told, walked quota.Usage
			eventually(t, "quota and walk agree", func() bool {
				told, walked = n.layer(restored), n.walked(restored)
				return told == walked
			})
			if told.Bytes < 3000000 || told.Inodes < 100 {
				t.Errorf("usage is %+v", told)
			}
		})
	}
}
