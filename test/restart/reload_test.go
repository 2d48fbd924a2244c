package restart

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
	"podstead/image/imagetest"
	"podstead/sys"
)

// live is a node whose configuration a test changes.
type live struct {
	*world
	file  string
	times int
}

// reload puts a configuration in force, which is told by a field of its own.
func (l *live) reload(lines ...string) {
	l.Helper()
	l.times++
	mark := fmt.Sprintf("%dh0m0s", l.times)
	l.write(l.file, strings.Join(append(lines, "streams: {idleTimeout: "+mark+"}"), "\n"))
	l.until("the change is in force", func() bool {
		c := l.config()
		if c.File.Error != "" {
			l.Fatal(c.File.Error)
		}
		return c.Settings.Streams.IdleTimeout == mark
	})
}

func (l *live) write(path, text string) {
	l.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		l.Fatal(err)
	}
	if err := sys.WriteFileAtomic(path, []byte(text), 0o700, false); err != nil {
		l.Fatal(err)
	}
}

// TestReloadTakesEffect changes, below a running engine, the configuration file
// and the files that it leads to: what is made from then on is as they say, and
// what runs goes on.
func TestReloadTakesEffect(t *testing.T) {
	file := filepath.Join(t.TempDir(), "engine.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := &live{world: newWorld(t, "--config", file), file: file}
	old := l.start("old", "sleep 100000")
	engine := l.find("podstead", "cri")
	for _, part := range []struct {
		name string
		test func(*live, *testing.T)
	}{
		{"registries", reloadRegistries}, {"fetching", reloadFetching}, {"pinned images", reloadPinned}, {"logs", reloadLogs}, {"devices", reloadDevices},
		{"CNI", reloadCNI}, {"handlers", reloadHandlers},
	} {
		t.Run(part.name, func(t *testing.T) {
			w := *l.world
			w.T = t
			part.test(&live{world: &w, file: l.file, times: l.times + 100}, t)
		})
		l.times += 200
	}
	if got := l.find("podstead", "cri"); got != engine {
		t.Errorf("the engine has the pid %d, and had %d", got, engine)
	}
	if got := l.exec(old, "echo", "here"); got != "here\n" {
		t.Errorf("the container of before says %q", got)
	}
}

// pull returns why an image cannot be pulled.
func (l *live) pull(name string) (err error) {
	l.Helper()
	l.call(func(ctx context.Context, r *remote.Runtime) error {
		_, err = r.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		return nil
	})
	return err
}

func reloadRegistries(l *live, t *testing.T) {
	certs := t.TempDir()
	registry, _, _ := strings.Cut(l.image, "/")
	l.write(certs+"/one.example/hosts.toml", "server = \"http://"+registry+"\"\n")
	l.reload("images: {certsDir: " + certs + "}")
	if err := l.pull("one.example/busybox:1"); err != nil {
		t.Error(err)
	}
	// What is in the directory is read anew by each pull.
	l.write(certs+"/two.example/hosts.toml", "server = \"http://127.0.0.1:1\"\n")
	if l.pull("two.example/busybox:1") == nil {
		t.Error("an image came from where nobody is")
	}
	l.write(certs+"/two.example/hosts.toml", "server = \"http://"+registry+"\"\n")
	if err := l.pull("two.example/busybox:1"); err != nil {
		t.Error(err)
	}
}

// busy is a registry that counts the layers under way.
type busy struct {
	http.Handler
	layers map[string]bool // by path
	wait   int             // a layer is answered for once so many have been asked for at a time

	sync.Mutex
	now, most int
	enough    chan struct{} // closed when most reaches wait
}

func (b *busy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/v2/silent/"):
		<-r.Context().Done()
		return
	case b.layers[r.URL.Path]:
		b.add(1)
		defer b.add(-1)
		select {
		case <-b.enough:
		case <-r.Context().Done():
		}
	}
	b.Handler.ServeHTTP(w, r)
}

func (b *busy) add(n int) {
	b.Lock()
	defer b.Unlock()
	b.now += n
	if b.now > b.most {
		b.most = b.now
		if b.most == b.wait {
			close(b.enough)
		}
	}
}

func reloadFetching(l *live, t *testing.T) {
	serve := func(wait int) (*busy, string) {
		var layers []imagetest.Layer
		for i := range 5 {
			layers = append(layers, imagetest.Layer{Tar: imagetest.Tar(t, imagetest.File{Name: fmt.Sprint(wait, i)})})
		}
		image := imagetest.New(t, imagetest.Config{}, layers...)
		b := &busy{
			Handler: imagetest.Handler(t, map[string]imagetest.Image{"i:1": image}, nil),
			layers:  map[string]bool{}, wait: wait, enough: make(chan struct{}),
		}
		for _, layer := range image.Layers {
			b.layers["/v2/i/blobs/"+layer.Digest()] = true
		}
		server := httptest.NewServer(b)
		t.Cleanup(server.Close)
		return b, strings.TrimPrefix(server.URL, "http://")
	}
	for _, n := range []int{5, 1} {
		l.reload(fmt.Sprintf("images: {parallelLayers: %d}", n))
		b, at := serve(n)
		if err := l.pull(at + "/i:1"); err != nil {
			t.Error(err)
		}
		if b.most != n {
			t.Errorf("with %d layers at a time, %d were fetched", n, b.most)
		}
	}
	l.reload("images: {stallTimeout: 50ms}")
	_, at := serve(1)
	if err := l.pull(at + "/silent:1"); err == nil || !strings.Contains(err.Error(), "no progress") {
		t.Errorf("a registry that does not answer: %v", err)
	}
}

func reloadPinned(l *live, t *testing.T) {
	spec := &runtimeapi.ImageSpec{Image: l.image}
	status := func() (image *runtimeapi.Image) {
		l.call(func(ctx context.Context, r *remote.Runtime) error {
			s, err := r.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
			image = s.GetImage()
			return err
		})
		return image
	}
	l.reload("images: {pinned: ['" + l.image + "']}")
	if !status().GetPinned() {
		t.Error("it is not pinned")
	}
	// That is for collectors: who says so by name removes it.
	l.call(func(ctx context.Context, r *remote.Runtime) error {
		_, err := r.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec})
		return err
	})
	if got := status(); got != nil {
		t.Errorf("after its removal it is %v", got)
	}
	if err := l.pull(l.image); err != nil {
		t.Fatal(err)
	}
	l.reload()
	if status().GetPinned() {
		t.Error("it is pinned still")
	}
}

func reloadLogs(l *live, t *testing.T) {
	l.reload("logs: {maxBytes: 64Ki, maxFiles: 3}")
	id := l.start("much", "seq 1 50000")
	l.until("it has ended", func() bool { return l.status(id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED })
	files, err := filepath.Glob(filepath.Join(l.sandbox.GetLogDirectory(), "much.log*"))
	if err != nil || len(files) != 3 {
		t.Errorf("files of the log are %q, %v, want 3", files, err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Size() > 64<<10 {
			t.Errorf("%s has %d bytes, %v", file, info.Size(), err)
		}
	}
}

func reloadDevices(l *live, t *testing.T) {
	dir := t.TempDir()
	l.reload("cdi: {dirs: [" + dir + "]}")
	l.write(dir+"/x.yaml", "cdiVersion: 0.6.0\nkind: test.podstead/x\ndevices: [{name: y, containerEdits: {env: [DEVICE=here]}}]\n")
	l.call(func(ctx context.Context, r *remote.Runtime) error {
		req := l.container(l.pod, "device", "test $DEVICE = here")
		req.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "test.podstead/x=y"}}
		c, err := r.CreateContainer(ctx, req)
		if err != nil {
			return err
		}
		_, err = r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()})
		l.until("it has ended", func() bool {
			return l.status(c.GetContainerId()).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
		})
		if code := l.status(c.GetContainerId()).GetExitCode(); code != 0 {
			t.Errorf("the container does not have its device: it ended with %d", code)
		}
		return err
	})
}

// plugin gives pods an address without doing anything.
const plugin = `#!/bin/sh
test $CNI_COMMAND = ADD && echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
	"ips": [{"address": "10.97.0.9/24", "interface": 0}]}'
`

// another runs another pod, looks at it and removes it.
func (l *live) another(name string, look func(context.Context, *remote.Runtime, *runtimeapi.PodSandboxStatus)) {
	l.Helper()
	config := proto.CloneOf(l.sandbox)
	config.Metadata.Name, config.Metadata.Uid = name, name
	config.Linux.CgroupParent += "-" + name
	l.call(func(ctx context.Context, r *remote.Runtime) error {
		p, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			return err
		}
		s, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetPodSandboxId()})
		if err == nil {
			look(ctx, r, s.GetStatus())
		}
		if _, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetPodSandboxId()}); err != nil {
			l.Error(err)
		}
		return err
	})
}

func reloadCNI(l *live, t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	l.write(bin+"/fake", plugin+"exit 0\n")
	networkReady := func() (condition *runtimeapi.RuntimeCondition) {
		l.call(func(ctx context.Context, r *remote.Runtime) error {
			s, err := r.Status(ctx, &runtimeapi.StatusRequest{})
			for _, c := range s.GetStatus().GetConditions() {
				if c.GetType() == runtimeapi.NetworkReady {
					condition = c
				}
			}
			return err
		})
		return condition
	}
	address := func(name string) (ip string) {
		l.another(name, func(_ context.Context, _ *remote.Runtime, s *runtimeapi.PodSandboxStatus) {
			ip = s.GetNetwork().GetIp()
		})
		return ip
	}
	const plugged = "10.97.0.9"
	// Files come, are mended and go without anybody telling the engine.
	l.reload("network: {cniConfDir: " + conf + ", cniBinDirs: [" + bin + "]}")
	if got := address("none"); got == plugged || got == "" {
		t.Errorf("without a file a pod has the address %q", got)
	}
	l.write(conf+"/10-fake.conflist", `{"cniVersion": "1.0.0", "name": `)
	if c := networkReady(); c.GetStatus() || !strings.Contains(c.GetMessage(), "10-fake.conflist") {
		t.Errorf("with a bad file the network is %v", c)
	}
	l.write(conf+"/10-fake.conflist", `{"cniVersion": "1.0.0", "name": "fake", "plugins": [{"type": "fake"}]}`)
	if c := networkReady(); !c.GetStatus() {
		t.Errorf("with a good file the network is %v", c)
	}
	if got := address("plugged"); got != plugged {
		t.Errorf("a pod has the address %q", got)
	}
	// A network of this name is beside the pod's own, whatever the order of files.
	l.write(conf+"/20-more.conflist", `{"cniVersion": "1.0.0", "name": "more", "plugins": [{"type": "more"}]}`)
	l.write(bin+"/more", plugin+"echo $CNI_COMMAND $CNI_IFNAME >>"+bin+"/calls\n")
	for i, networks := range []string{"[more]", "[]"} {
		l.reload("network: {cniConfDir: " + conf + ", cniBinDirs: [" + bin + "], cniNetworks: " + networks + "}")
		if got := address(fmt.Sprint("networks-", i)); got != plugged {
			t.Errorf("with the networks %s a pod has the address %q", networks, got)
		}
	}
	if got, err := os.ReadFile(bin + "/calls"); err != nil || string(got) != "ADD eth1\nDEL eth1\n" {
		t.Errorf("the second network's plugin was called for %q, %v", got, err)
	}
	if err := os.Remove(conf + "/20-more.conflist"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(conf + "/10-fake.conflist"); err != nil {
		t.Fatal(err)
	}
	if got := address("again"); got == plugged || got == "" {
		t.Errorf("after the file has gone a pod has the address %q", got)
	}
}

func reloadHandlers(l *live, t *testing.T) {
	if err := syscall.Access("/usr/sbin/runc", 1); err != nil {
		t.Skip("runc is not installed")
	}
	handlers := "handlers: [{name: gone, path: /no/such/runtime}, {name: runc, path: /usr/sbin/runc}]"
	for i, c := range []struct {
		lines []string
		want  string // in the error
	}{
		{[]string{handlers, "defaultHandler: gone"}, "/no/such/runtime"},
		{[]string{handlers, "defaultHandler: runc"}, ""},
		{nil, ""},
	} {
		l.reload(c.lines...)
		l.another(fmt.Sprint("on-", i), func(ctx context.Context, r *remote.Runtime, s *runtimeapi.PodSandboxStatus) {
			made, err := r.CreateContainer(ctx, l.container(s.GetId(), "c", "sleep 1000"))
			if err == nil {
				_, err = r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: %v, want %q", c.lines, err, c.want)
			}
		})
		// The pod of before has the handler that it was made with.
		l.start(fmt.Sprint("other-", i), "sleep 1000")
	}
}
