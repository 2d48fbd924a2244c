package hostile

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/image/imagetest"
)

// victim is a directory of the host that attacks aim at.
func victim(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "canary"), []byte("alive"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("the host's %s was changed: %v, %v", dir, entries, err)
		}
		if data, _ := os.ReadFile(filepath.Join(dir, "canary")); string(data) != "alive" {
			t.Errorf("the host's file now says %q", data)
		}
	})
	return dir
}

// without leaves out files of the image.
func without(files []imagetest.File, names ...string) []imagetest.File {
	var out []imagetest.File
	for _, f := range files {
		drop := false
		for _, name := range names {
			drop = drop || strings.Trim(f.Name, "/") == name || strings.HasPrefix(f.Name, name+"/")
		}
		if !drop {
			out = append(out, f)
		}
	}
	return out
}

func TestHostileLayers(t *testing.T) {
	n := start(t)
	dir := victim(t)
	out := "../../../../../../../../../.." + dir
	base := imagetest.BusyboxFiles(t)
	for name, test := range map[string]struct {
		config imagetest.Config
		drop   []string         // of the base layer
		files  []imagetest.File // second layer
		mounts []*runtimeapi.Mount
		load   string // what the load's error names; "" if it succeeds
		start  string // what the error of create or start names; "" if it succeeds
		script string
		want   string // what the script prints
	}{
		"dot dot":                            {files: []imagetest.File{{Name: out + "/evil"}}, load: `".."`},
		"dot dot in the middle":              {files: []imagetest.File{{Name: "a/../../evil"}}, load: `".."`},
		"absolute":                           {files: []imagetest.File{{Name: dir + "/canary", Data: []byte("inside\n")}}, script: "cat " + dir + "/canary", want: "inside\n"},
		"symbolic link as parent":            {files: []imagetest.File{{Name: "link", Link: dir}, {Name: "link/canary", Data: []byte("x")}}, script: "readlink -f /link/canary", want: dir + "/canary\n"},
		"relative link as parent":            {files: []imagetest.File{{Name: "d/"}, {Name: "d/link", Link: out}, {Name: "d/link/canary", Data: []byte("x")}}, script: "readlink -f /d/link/canary", want: dir + "/canary\n"},
		"link as parent in an earlier layer": {files: []imagetest.File{{Name: "run", Link: dir}, {Name: "run/canary/x"}}, script: "echo harmless", want: "harmless\n"},
		"hard link out":                      {files: []imagetest.File{{Name: "evil", Link: out + "/canary", Type: tar.TypeLink}}, load: `".."`},
		"hard link to the host":              {files: []imagetest.File{{Name: "evil", Link: dir + "/canary", Type: tar.TypeLink}}, load: "this layer does not have"},
		"hard link through a link":           {files: []imagetest.File{{Name: "l", Link: dir}, {Name: "evil", Link: "l/canary", Type: tar.TypeLink}}, load: "evil"},
		"hard link over a link":              {files: []imagetest.File{{Name: "l", Link: dir + "/canary"}, {Name: "evil", Link: "l", Type: tar.TypeLink, Mode: 0o777}, {Name: "evil", Data: []byte("x")}}, script: "cat evil", want: "x\n"},
		"devices": {files: []imagetest.File{{Name: "disk", Type: tar.TypeBlock, Major: 254, Mode: 0o666}, {Name: "mem", Type: tar.TypeChar, Major: 1, Minor: 1, Mode: 0o666}},
			script: "for f in disk mem; do (exec 3<>$f) 2>/dev/null && echo $f opens; done; echo done", want: "done\n"},
		"set-id for the host":     {files: []imagetest.File{{Name: "su", Mode: 0o6755, Data: []byte("x")}}, script: "stat -c %a su", want: "6755\n"},
		"whiteout of ..":          {files: []imagetest.File{{Name: "d/"}, {Name: "d/.wh..."}}, load: "whiteout"},
		"whiteout of .":           {files: []imagetest.File{{Name: "d/"}, {Name: "d/.wh.."}}, load: "whiteout"},
		"whiteout through a link": {files: []imagetest.File{{Name: "l", Link: dir}, {Name: "l/.wh.canary"}}, script: "echo harmless", want: "harmless\n"},
		"opaque through a link":   {files: []imagetest.File{{Name: "l", Link: dir}, {Name: "l/.wh..wh..opq"}}, script: "echo harmless", want: "harmless\n"},
		"everything hidden":       {files: []imagetest.File{{Name: ".wh..wh..opq"}}, start: `"sh"`},
		"overlay attributes":      {files: []imagetest.File{{Name: "d/", Xattrs: map[string]string{"trusted.overlay.redirect": "/etc", "trusted.overlay.opaque": "y", "trusted.overlay.metacopy": ""}}}, script: "ls /d", want: ""},
		"type of the future":      {files: []imagetest.File{{Name: "x", Type: 'Z'}}, load: "type"},
		"name of 5000 bytes":      {files: []imagetest.File{{Name: strings.Repeat("n/", 2500)}}, load: "name of"},
		"component of 300":        {files: []imagetest.File{{Name: strings.Repeat("n", 300)}}, load: "too long"},
		"owner too large":         {files: []imagetest.File{{Name: "x", UID: 1 << 31}}, load: "owner"},

		"proc is a link":  {drop: []string{"proc"}, files: []imagetest.File{{Name: "proc", Link: dir}}, start: "/proc"},
		"dev is a link":   {drop: []string{"dev"}, files: []imagetest.File{{Name: "dev", Link: out}}, start: "/dev"},
		"sys is a link":   {drop: []string{"sys"}, files: []imagetest.File{{Name: "sys", Link: dir}}, start: "/sys"},
		"proc is a file":  {drop: []string{"proc"}, files: []imagetest.File{{Name: "proc", Data: []byte("x")}}, start: "/proc"},
		"etc is a link":   {drop: []string{"etc"}, files: []imagetest.File{{Name: "etc", Link: dir}}, script: "ls -d /etc/hostname", want: "/etc/hostname\n", mounts: []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/etc/more", Readonly: true}}},
		"hosts is a link": {files: []imagetest.File{{Name: "etc/hosts", Link: dir + "/canary"}, {Name: "etc/resolv.conf", Link: out + "/canary"}}, script: "grep -c alive /etc/hosts /etc/resolv.conf; echo done", want: "/etc/hosts:0\n/etc/resolv.conf:0\ndone\n"},
		"dev is a loop":   {drop: []string{"dev"}, files: []imagetest.File{{Name: "dev", Link: "dev"}}, start: "/dev"},
		"destination is a link": {files: []imagetest.File{{Name: "data", Link: out}}, mounts: []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/data/in", Readonly: true}},
			script: "cat /data/in/canary", want: "alive\n"},
		"destination in proc":                        {files: []imagetest.File{{Name: "data", Link: "/proc/self"}}, mounts: []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/data/fd", Readonly: true}}, start: "leads into /proc"},
		"working directory is a link":                {config: imagetest.Config{WorkingDir: "/work/x"}, files: []imagetest.File{{Name: "work", Link: dir}}, script: "pwd -P", want: dir + "/x\n"},
		"working directory in proc":                  {config: imagetest.Config{WorkingDir: "/proc/self/fd/8"}, start: "/proc/self/fd/8"},
		"working directory through a link into proc": {config: imagetest.Config{WorkingDir: "/fd/7/../.."}, files: []imagetest.File{{Name: "fd", Link: "/proc/self/fd"}}, script: "test -e " + dir + "/canary || echo inside", want: "inside\n"},

		"user below zero":           {config: imagetest.Config{User: "-1"}, start: `user "-1"`},
		"user too large":            {config: imagetest.Config{User: "4294967296"}, start: "4294967296"},
		"user of 2^31":              {config: imagetest.Config{User: "2147483648"}, start: "2147483648"},
		"group too large":           {config: imagetest.Config{User: "0:99999999999999999999"}, start: "99999999999999999999"},
		"user unknown":              {config: imagetest.Config{User: "nobody\nroot"}, start: "nobody"},
		"number named in passwd":    {config: imagetest.Config{User: "1234"}, files: []imagetest.File{{Name: "etc/passwd", Data: []byte("1234:x:0:0::/root:/bin/sh\n")}}, script: "id -u", want: "1234\n"},
		"passwd huge":               {config: imagetest.Config{User: "user"}, files: []imagetest.File{{Name: "etc/passwd", Data: []byte(strings.Repeat("u:x:1:1::/:/bin/sh\n", 1<<17))}}, start: "passwd"},
		"passwd is a pipe":          {config: imagetest.Config{User: "user"}, files: []imagetest.File{{Name: "etc/passwd", Type: tar.TypeFifo}}, start: "passwd"},
		"passwd is a link out":      {config: imagetest.Config{User: "user"}, files: []imagetest.File{{Name: "etc/passwd", Link: "/proc/1/root/etc/passwd"}}, start: "user"},
		"passwd is a device":        {config: imagetest.Config{User: "user"}, files: []imagetest.File{{Name: "etc/passwd", Type: tar.TypeChar, Major: 1, Minor: 5}}, start: "passwd"},
		"passwd is garbage":         {config: imagetest.Config{User: "good"}, files: []imagetest.File{{Name: "etc/passwd", Data: []byte("\x00\xff:::\n::::::\nbad:x:-1:4294967295::/:\ngood:x:7:8::/h\tx\x01:/bin/sh\n")}}, script: "echo $HOME", want: "/\n"},
		"environment of many lines": {config: imagetest.Config{Env: []string{"A=1\nB=2", "=x", "NOEQUALS", "PATH=/bin:/sbin", "C=\xff\xfe"}}, script: `echo "$A"; echo "B is $B."`, want: "1\nB=2\nB is .\n"},
		"labels of many lines":      {config: imagetest.Config{Labels: map[string]string{"a\nb": "c\nd", strings.Repeat("k", 100000): "v"}}, script: "echo harmless", want: "harmless\n"},
		"entry point unprintable":   {config: imagetest.Config{Entrypoint: []string{"\x1b[2J\xff"}}, start: `\x1b`},
		"volume upwards":            {config: imagetest.Config{Volumes: map[string]struct{}{"/../../.." + dir: {}, "relative": {}, "": {}}}, script: "test -e " + dir + "/canary || echo inside", want: "inside\n"},
		"stop signal of nowhere":    {config: imagetest.Config{StopSignal: "SIGNONE"}, script: "echo harmless", want: "harmless\n"},
		"architecture of others":    {config: imagetest.Config{Architecture: "s390x"}, load: "s390x"},
	} {
		t.Run(name, func(t *testing.T) {
			n := n.within(t)
			ref := "localhost/hostile:" + strings.Map(func(r rune) rune {
				if r >= 'a' && r <= 'z' {
					return r
				}
				return '-'
			}, name)
			layers := []imagetest.Layer{{Tar: imagetest.Tar(t, without(base, test.drop...)...)}, {Tar: imagetest.Tar(t, test.files...)}}
			if test.config.Env == nil {
				test.config.Env = []string{"PATH=/bin:/sbin"}
			}
			err := n.tryLoad(imagetest.ArchiveBytes(t, imagetest.New(t, test.config, layers...), ref))
			if test.load != "" {
				wantError(t, "load", err, test.load)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer n.removeImage(ref)
			p := n.pod()
			defer p.remove()
			c := sh(test.script)
			c.Image, c.Mounts = spec(ref), test.mounts
			if len(test.config.Entrypoint) > 0 {
				c.Command = nil
			}
			if test.start != "" {
				_, err := p.try(c)
				wantError(t, "start", err, test.start)
				return
			}
			if out, code := p.run(c); out != test.want {
				t.Errorf("it printed %q, want %q; exit code %d", out, test.want, code)
			}
		})
	}
}

// within is the node in a subtest.
func (n *node) within(t *testing.T) *node {
	inner := *n
	inner.T = t
	return &inner
}

func (n *node) removeImage(ref string) {
	n.Helper()
	if _, err := n.rt.RemoveImage(n.ctx(), &runtimeapi.RemoveImageRequest{Image: spec(ref)}); err != nil {
		n.Error(err)
	}
}
