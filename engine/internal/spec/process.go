package spec

import (
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process builds what is executed: the request's words over the image's.
func (in *Input) process() (*specs.Process, error) {
	args, err := argv(in.Config, in.Image)
	if err != nil {
		return nil, err
	}
	env, err := in.env()
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Args:     args,
		Env:      env,
		Cwd:      "/",
		Terminal: in.Config.Tty,
		User: specs.User{
			UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Groups,
		},
	}
	for _, dir := range []string{in.Config.WorkingDir, in.Image.WorkingDir} {
		if dir == "" {
			continue
		}
		if strings.ContainsFunc(dir, isControl) {
			return nil, invalid("working_dir %q has control characters", dir)
		}
		p.Cwd = path.Clean("/" + dir)
		break
	}
	sc := in.Config.GetLinux().GetSecurityContext()
	p.NoNewPrivileges = sc.GetNoNewPrivs()
	p.Capabilities, err = in.capabilities()
	if err != nil {
		return nil, err
	}
	if r := in.Config.GetLinux().GetResources(); r != nil {
		adj := int(r.OomScoreAdj)
		if adj < -1000 || adj > 1000 {
			return nil, invalid("oom_score_adj %d is not in the range -1000 to 1000", adj)
		}
		p.OOMScoreAdj = &adj
	}
	return p, nil
}

// argv: a command of the request replaces the image's entry point and its
// arguments, arguments alone replace the image's arguments.
func argv(c *runtimeapi.ContainerConfig, img ocispec.ImageConfig) ([]string, error) {
	command, args := c.Command, c.Args
	if len(command) == 0 {
		command = img.Entrypoint
		if len(args) == 0 {
			args = img.Cmd
		}
	}
	argv := append(append([]string{}, command...), args...)
	if len(argv) == 0 {
		return nil, invalid("no command: neither command and args nor the image name one")
	}
	if argv[0] == "" {
		return nil, invalid("command[0] is empty")
	}
	for _, a := range argv {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("command: argument %q has a NUL byte", a)
		}
	}
	return argv, nil
}

// env: defaults, then the image's variables, then the request's, a later one
// replacing an earlier one of the same name in its place.
func (in *Input) env() ([]string, error) {
	var env []string
	index := map[string]int{}
	set := func(name, value string) {
		if i, ok := index[name]; ok {
			env[i] = name + "=" + value
			return
		}
		index[name] = len(env)
		env = append(env, name+"="+value)
	}
	for _, kv := range []string{defaultPath, "HOSTNAME=" + in.Hostname, "HOME=" + in.User.Home} {
		name, value, _ := strings.Cut(kv, "=")
		set(name, value)
	}
	if in.Config.Tty {
		set("TERM", "xterm")
	}
	for _, kv := range in.Image.Env {
		name, value, ok := strings.Cut(kv, "=")
		if name == "" || !ok || strings.ContainsRune(kv, 0) {
			continue // the image's own nonsense; every runtime lets it pass
		}
		set(name, value)
	}
	for i, kv := range in.Config.Envs {
		value := string(kv.Value)
		if kv.Key == "" || strings.ContainsAny(kv.Key, "=\x00") {
			return nil, invalid("envs[%d].key %q is not a name of a variable", i, kv.Key)
		}
		if strings.ContainsRune(value, 0) {
			return nil, invalid("envs[%d].value (of %s) has a NUL byte", i, kv.Key)
		}
		set(kv.Key, value)
	}
	return env, nil
}
