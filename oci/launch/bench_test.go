package launch

import (
	"os"
	"path/filepath"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podstead/oci/seccomp"
)

// overlayOptions gives a container an overlay root on top of dir.
func overlayOptions(t testing.TB, lower ...string) *Overlay {
	dir := t.TempDir()
	o := &Overlay{Lower: lower, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func defaultProfile(t testing.TB) *specs.LinuxSeccomp {
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// BenchmarkContainer is a whole container: compiled, prepared, started, ended
// and reaped.
func BenchmarkContainer(b *testing.B) {
	needRoot(b)
	for _, bc := range []struct {
		name    string
		seccomp bool
		overlay bool
	}{{"directory", false, false}, {"overlay", false, true}, {"overlay+seccomp", true, true}} {
		b.Run(bc.name, func(b *testing.B) {
			root := rootfs(b)
			spec := testSpec(root, "")
			spec.Process.Args = []string{"true"}
			var opt Options
			if bc.overlay {
				opt.Rootfs = overlayOptions(b, root)
			}
			if bc.seccomp {
				spec.Linux.Seccomp = defaultProfile(b)
				f, err := seccomp.Compile(spec.Linux.Seccomp)
				if err != nil {
					b.Fatal(err)
				}
				opt.Filter = f
			}
			for b.Loop() {
				p, err := Compile(spec, opt)
				if err != nil {
					b.Fatal(err)
				}
				once(b, p)
			}
		})
	}
}

func once(b *testing.B, p *Program) {
	files, err := p.Open()
	if err != nil {
		b.Fatal(err)
	}
	c, err := ForkWith(p, files, ForkOptions{Start: true})
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	unix.Wait4(c.Pid, nil, 0, nil)
	c.Pidfd.Close()
}

func BenchmarkExec(b *testing.B) {
	needRoot(b)
	spec := testSpec(rootfs(b), "exec sleep 1000")
	p, err := Compile(spec, Options{ID: "box"})
	if err != nil {
		b.Fatal(err)
	}
	pid := start(b, p)
	proc := *spec.Process
	proc.Args = []string{"true"}
	for b.Loop() {
		x, err := CompileExec(spec, &proc, ExecOptions{ID: "box/1", Pid: pid})
		if err != nil {
			b.Fatal(err)
		}
		once(b, x)
	}
}

func BenchmarkCompile(b *testing.B) {
	spec := testSpec("/", "true")
	for b.Loop() {
		if _, err := Compile(spec, Options{ID: "box"}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkForkExec is what the others are to be compared with: a bare process
// by Go's own vfork and execve.
func BenchmarkForkExec(b *testing.B) {
	for b.Loop() {
		p, err := os.StartProcess(busybox, []string{"true"}, &os.ProcAttr{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}
