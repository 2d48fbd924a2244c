package launch

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// compiler translates a specification. Its methods add calls in the order in
// which the child makes them; the files of this package named after a part of
// the specification have the methods for that part.
type compiler struct {
	*assembler
	spec      *specs.Spec
	proc      *specs.Process
	opt       Options
	into      bool                              // it joins a container that runs
	new       uint64                            // namespaces to be made
	join      map[specs.LinuxNamespaceType]reg  // namespaces to be joined
	has       map[specs.LinuxNamespaceType]bool // either
	at        map[specs.LinuxNamespaceType]int  // index in linux.namespaces
	root      reg                               // the container's root mount
	pts       reg                               // its devpts, 0 if there is none of its own
	seed      reg                               // mount namespace to start from, none if the forker's
	proc1     reg                               // a procfs that nobody else can reach, 0 if not made yet
	rootTree  *slot                             // the root, if the child has to open it
	opens     bool                              // the child can open what is to be bound itself
	idmapped  map[idMaps]reg                    // user namespaces for mounts that it opens
	cwdFailed reg                               // 1 if root may not enter the working directory
	cwd       ref                               // where getcwd writes, 0 before there is one
	chosen    reg                               // which of the candidates is to be executed
	scratch   ref                               // for results that are only tested
}

func newCompiler(spec *specs.Spec, proc *specs.Process, opt Options) (*compiler, error) {
	if proc == nil {
		return nil, fmt.Errorf("process: is missing")
	}
	if spec.Linux == nil {
		return nil, fmt.Errorf("linux: is missing")
	}
	c := &compiler{
		assembler: newAssembler(opt.ID),
		opt:       opt,
		spec:      spec, proc: proc,
		join:     map[specs.LinuxNamespaceType]reg{},
		has:      map[specs.LinuxNamespaceType]bool{},
		at:       map[specs.LinuxNamespaceType]int{},
		idmapped: map[idMaps]reg{},
		root:     none, pts: none, proc1: none, seed: none,
	}
	c.scratch = c.space(statxSize)
	return c, c.checkProcess()
}

// none is no register.
const none reg = noReg

// container compiles a container's first process. The order is the heart of
// the matter; each step says what it needs of those before.
func (c *compiler) container(opt Options) (*Program, error) {
	if err := c.checkSupported(); err != nil {
		return nil, err
	}
	if err := c.namespaces(); err != nil {
		return nil, err
	}
	if err := c.openRoot(opt); err != nil {
		return nil, err
	}
	mounts, err := c.parseMounts(opt)
	if err != nil {
		return nil, err
	}
	if len(c.spec.Linux.NetDevices) > 0 {
		c.needs(specs.NetworkNamespace, "linux.netDevices")
	}
	c.enterHostSide(opt.CgroupJoin, opt.CgroupDir)
	c.timeNamespace()
	c.enterNamespaces()
	if c.mountsOnHost() {
		c.makeMounts(mounts)
	}
	c.enterMountNamespace()
	if !c.mountsOnHost() {
		c.makeMounts(mounts)
	}
	c.attachRoot()
	for i := range mounts {
		c.attach(&mounts[i])
	}
	c.devices(mounts)
	c.terminal()
	c.sysctls()
	c.names()
	c.makeCwd()
	c.point(PointCreated)
	c.switchRoot()
	c.hidePaths()
	c.finalize()
	return c.finish()
}

// checkSupported refuses by name what would otherwise be ignored.
func (c *compiler) checkSupported() error {
	l := c.spec.Linux
	unsupported := []struct {
		set  bool
		name string
	}{
		{c.spec.Windows != nil, "windows"},
		{c.spec.Solaris != nil, "solaris"},
		{c.spec.VM != nil, "vm"},
		{c.spec.ZOS != nil, "zos"},
		{c.spec.FreeBSD != nil, "freebsd"},
		{!c.opt.Hooks && c.spec.Hooks != nil && len(c.spec.Hooks.Prestart) > 0, "hooks.prestart"},
		{!c.opt.Hooks && c.spec.Hooks != nil && len(c.spec.Hooks.CreateRuntime) > 0, "hooks.createRuntime"},
		{!c.opt.Hooks && c.spec.Hooks != nil && len(c.spec.Hooks.CreateContainer) > 0, "hooks.createContainer"},
		{!c.opt.Hooks && c.spec.Hooks != nil && len(c.spec.Hooks.StartContainer) > 0, "hooks.startContainer"},
		{!c.opt.Hooks && c.spec.Hooks != nil && len(c.spec.Hooks.Poststart) > 0, "hooks.poststart"},
		{!c.opt.Hooks && c.spec.Hooks != nil && len(c.spec.Hooks.Poststop) > 0, "hooks.poststop"},
		{c.opt.Unprivileged && c.opt.Rootfs != nil, "an overlay root without privilege"},
		{!c.opt.Resctrl && l.IntelRdt != nil, "linux.intelRdt"},
		{!c.opt.NetDevices && len(l.NetDevices) > 0, "linux.netDevices"},
	}
	for _, u := range unsupported {
		if u.set {
			return fmt.Errorf("%s: not supported", u.name)
		}
	}
	return nil
}

// enterHostSide does what must be done while the child still is where its
// forker is: with the host's privilege and the host's procfs, which nothing of
// the container can have replaced (CVE-2019-16884, CVE-2025-52881).
func (c *compiler) enterHostSide(cgroupJoin []string, cgroupDir string) {
	c.bornInCgroup(cgroupDir)
	if c.p.clone&unix.CLONE_NEWUSER != 0 {
		c.do("wait for the id maps", cWaitMaps)
	}
	c.oomScoreAdj()
	c.selinuxLabel(c.keyring)
	if p := c.proc.ApparmorProfile; p != "" {
		c.writeAttr("process.apparmorProfile: set AppArmor profile "+p, "apparmor/exec", "exec "+p)
	}
	c.writeCgroups(cgroupJoin)
	// From here on nobody with less privilege may trace this process or look
	// into its descriptors (CVE-2016-9962); execve lifts it.
	c.do("become undumpable", cSetDumpable, 0)
	c.do("set umask", cUmask, 0)
}

// joinCgroup has the child in its cgroup from the beginning.
func (c *compiler) joinCgroup(files []string, dir string) {
	c.bornInCgroup(dir)
	c.writeCgroups(files)
}

func (c *compiler) bornInCgroup(dir string) {
	if dir != "" {
		s := c.addSlot(slot{kind: slotFile, path: dir, flags: unix.O_PATH | unix.O_DIRECTORY, label: "cgroup " + dir})
		c.p.cgroup = int(s)
	}
}

// writeCgroups joins the groups of a host with cgroup v1. The child opens the
// files itself, unless it is in a new user namespace and may not.
func (c *compiler) writeCgroups(files []string) {
	step := "join cgroup "
	if c.into {
		step = joinCgroupStep
	}
	fd := none
	for _, f := range files {
		text := step + path.Dir(f)
		if c.p.clone&unix.CLONE_NEWUSER != 0 {
			s := c.addSlot(slot{kind: slotFile, path: f, flags: unix.O_WRONLY, label: text})
			c.do(text, cWrite, s, "0", 1)
			continue
		}
		if fd == none {
			fd = c.newReg()
		}
		c.do(text, cOpenat, unix.AT_FDCWD, f, unix.O_WRONLY|unix.O_CLOEXEC, 0).out = uint16(fd)
		c.do(text, cWrite, fd, "0", 1)
	}
}

// checkProcess checks what can be wrong with a process.
func (c *compiler) checkProcess() error {
	if len(c.proc.Args) == 0 || c.proc.Args[0] == "" {
		return fmt.Errorf("process.args: is empty")
	}
	if err := checkAffinity(c.proc.ExecCPUAffinity); err != nil {
		return err
	}
	if !path.IsAbs(c.proc.Cwd) {
		return fmt.Errorf("process.cwd: %q is not absolute", c.proc.Cwd)
	}
	for _, list := range []struct {
		name string
		of   []string
	}{{"process.args", c.proc.Args}, {"process.env", c.proc.Env}} {
		for i, s := range list.of {
			if strings.IndexByte(s, 0) >= 0 {
				return fmt.Errorf("%s[%d]: has a NUL character", list.name, i)
			}
		}
	}
	return nil
}

// namespaces sorts out which namespaces are made and which are joined.
func (c *compiler) namespaces() error {
	for i, ns := range c.spec.Linux.Namespaces {
		field := fmt.Sprintf("linux.namespaces[%d]", i)
		flag, ok := namespaceFlag[ns.Type]
		if !ok {
			return fmt.Errorf("%s.type: %q is not supported", field, ns.Type)
		}
		if c.has[ns.Type] {
			return fmt.Errorf("%s: %s namespace is given twice", field, ns.Type)
		}
		c.has[ns.Type] = true
		if ns.Path == "" {
			c.new |= flag
			continue
		}
		if !filepath.IsAbs(ns.Path) {
			return fmt.Errorf("%s.path: %q is not absolute", field, ns.Path)
		}
		c.join[ns.Type] = c.addSlot(slot{
			kind: slotFile, path: ns.Path, flags: unix.O_RDONLY,
			label: "open " + string(ns.Type) + " namespace",
		})
	}
	if c.opt.Unprivileged && (!c.has[specs.UserNamespace] || c.sharesMounts()) {
		return fmt.Errorf("linux.namespaces: without privilege, a user namespace and a new mount namespace are required")
	}
	if c.sharesMounts() {
		if err := c.checkSharedMounts(); err != nil {
			return err
		}
	}
	if s, ok := c.join[specs.PIDNamespace]; ok {
		c.p.pidns = int(s)
	}
	if err := c.idMaps(); err != nil {
		return err
	}
	if p := c.opt.MountNamespace; p != "" && !c.sharesMounts() && !c.has[specs.UserNamespace] && !c.hooksAt(PointCreated) {
		c.seed = c.addSlot(slot{kind: slotFile, path: p, flags: unix.O_RDONLY, label: "open the mount namespace to start from"})
	}
	c.p.clone = c.new &^ notByClone
	if c.mountsOnHost() {
		c.p.clone &^= unix.CLONE_NEWNS
	}
	if c.forksTwice() {
		c.p.clone = 0
	}
	return nil
}

// notByClone are made by the child: the cgroup namespace shows the cgroup that
// its maker is in, so it must have joined that, and the clocks of a time
// namespace are set from outside of it.
const notByClone = unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

var namespaceFlag = map[specs.LinuxNamespaceType]uint64{
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// forksTwice tells whether namespaces must be made after others were joined:
// new ones then belong to a joined user namespace, and host ones are joined
// before a new user namespace takes the privilege to do so.
func (c *compiler) forksTwice() bool {
	if !c.has[specs.UserNamespace] {
		return false
	}
	for t := range c.join {
		if t != specs.PIDNamespace {
			return true
		}
	}
	return false
}

// joinOrder is the order of joining: a mount namespace brings a root of its own,
// which the descriptors of the others need not care for; the user namespace is last because it
// takes the privilege over those that it does not own.
var joinOrder = []specs.LinuxNamespaceType{
	specs.MountNamespace,
	specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
	specs.TimeNamespace, specs.UserNamespace,
}

// enterNamespaces joins, and makes those that clone did not, but for the mount
// namespace.
func (c *compiler) enterNamespaces() {
	for _, t := range joinOrder {
		if r, ok := c.join[t]; ok {
			c.do("join "+string(t)+" namespace", cSetns, r, namespaceFlag[t])
		}
	}
	if c.forksTwice() {
		c.do("clone into new namespaces", cFork, c.new&^notByClone)
		if c.new&unix.CLONE_NEWUSER != 0 {
			c.do("wait for the id maps", cWaitMaps)
		}
	}
	if c.has[specs.UserNamespace] {
		c.becomeRoot()
	}
	if c.new&unix.CLONE_NEWCGROUP != 0 {
		c.do("make a cgroup namespace", cUnshare, unix.CLONE_NEWCGROUP)
	}
}

// mountsOnHost tells whether the child makes the mounts, detached, while it still is
// in its forker's mount namespace, where the sources of binds are. A user namespace
// has the privilege only in a mount namespace of its own.
func (c *compiler) mountsOnHost() bool {
	return !c.has[specs.UserNamespace] && !c.sharesMounts()
}

// enterMountNamespace makes the one that clone did not, and keeps what is mounted in
// it from the host.
func (c *compiler) enterMountNamespace() {
	if c.sharesMounts() {
		return
	}
	if c.seed != none {
		c.do("join the mount namespace to start from", cSetns, c.seed, unix.CLONE_NEWNS)
	}
	if c.mountsOnHost() {
		c.do("make a mount namespace", cUnshare, unix.CLONE_NEWNS)
	}
	flags := unix.MS_REC | unix.MS_PRIVATE
	if p := c.spec.Linux.RootfsPropagation; p != "" && strings.TrimPrefix(p, "r") != "private" {
		flags = unix.MS_REC | unix.MS_SLAVE
	}
	c.do("cut propagation to the host", cMount, nil, "/", nil, flags, nil)
	if c.rootTree != nil {
		c.openTree(c.root, *c.rootTree)
	}
}

// becomeRoot makes the child the root of the user namespace that it has come to:
// the id that it came with does not exist there.
func (c *compiler) becomeRoot() {
	const text = "become root of the user namespace"
	c.do(text, cSetgroups, 0, nil).passing(syscall.EPERM)
	c.do(text, cSetresgid, 0, 0, 0)
	c.do(text, cSetresuid, 0, 0, 0)
}

// oomScoreAdj lowers the score only if there is the privilege to; not having
// it is no reason not to run.
func (c *compiler) oomScoreAdj() {
	adj := c.proc.OOMScoreAdj
	if adj == nil && c.spec.Process != nil {
		adj = c.spec.Process.OOMScoreAdj // an exec'd process is no better than the container's
	}
	if adj == nil {
		return
	}
	value := strconv.Itoa(*adj)
	text := "set oom_score_adj to " + value
	if c.new&unix.CLONE_NEWUSER != 0 {
		c.p.parent = append(c.p.parent, parentStep{label: text, file: "oom_score_adj", content: value})
		return
	}
	f := c.get(text, cOpenat, unix.AT_FDCWD, "/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	c.do(text, cWrite, f, value, len(value))
	c.orElse(func() { c.do(text+": permission denied", cWarn) }, syscall.EACCES, syscall.EPERM)
}

// keyring gives the container's processes a keyring of their own.
func (c *compiler) keyring() {
	if c.opt.KeepKeyring {
		return
	}
	c.do("join a new session keyring", cJoinSessionKeyring).passing(syscall.ENOSYS)
}

// names sets host and domain name.
func (c *compiler) names() {
	if h := c.spec.Hostname; h != "" {
		c.needs(specs.UTSNamespace, "hostname")
		c.do("set hostname "+h, cSethostname, h, len(h))
	}
	if d := c.spec.Domainname; d != "" {
		c.needs(specs.UTSNamespace, "domainname")
		c.do("set domainname "+d, cSetdomainname, d, len(d))
	}
}

// needs fails if the container shares a namespace with the host that a
// property would change.
func (c *compiler) needs(t specs.LinuxNamespaceType, field string) {
	if !c.has[t] {
		c.fail(fmt.Errorf("%s: needs a %s namespace of the container's own", field, t))
	}
}
