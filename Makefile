# Commands for users and developers; README.md explains them.
GO ?= go
export CGO_ENABLED = 0
LDFLAGS = -s -w

.PHONY: test-shim conformance test-validation test-kubelet build install run test critest critest-peer critest-docker test-vm test-vm-boxes test-vm-oci test-vm-engine test-vm-agent test-vm-node test-vm-suites test-vm-critest test-vm-systemd test-selinux test-gvisor bench bench-oci bench-node fuzz manifests simulate test-deps clean

# The three binaries, and the example's image as an OCI archive.
build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/... ./examples/hello
	$(GO) run ./examples/hello/archive bin/hello bin/hello.tar

# A real pod in the foreground; Ctrl-C takes it down.
run: build
	bin/podstead up --load bin/hello.tar -f examples/hello.yaml

# What "make build" has built, and units for systemd; see docs/agent.md.
PREFIX ?= /usr/local
install:
	install -D -t $(DESTDIR)$(PREFIX)/bin bin/podstead bin/podstead-supervisor bin/podstead-oci
	for unit in podstead podstead-cri; do \
		install -D -m 644 packaging/systemd/$$unit.service $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service && \
		sed -i 's|/usr/local/bin/|$(PREFIX)/bin/|g' $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit.service || exit; \
	done

# Everything that a test run needs from Debian; what is there is left alone.
test-deps:
	test/install-deps

# Tests need root and a kernel; those that look for leaks make a private host
# each. Two packages at a time, on however many processors: they mostly wait.
test: test-deps
	$(GO) vet ./...
	mkdir -p bin
	test/check-leaks >bin/before
	$(GO) test -p 2 -timeout 15m ./...
	test/check-leaks bin/before

# The validation suite of Kubernetes' cri-tools, in parallel and serially, three
# times each; see docs/testing.md. "make test" has it once.
critest: test-deps
	$(GO) test -count=3 -timeout 60m -v ./test/critest

# The same suite on containerd and runc, built from their modules: shows what
# this machine rules out.
critest-peer:
	test/install-deps peer
	$(GO) test -count=1 -timeout 60m -v -run Containerd ./test/critest -peer

# Our own suite, whole, on every handler that "make test" has a part of it on.
conformance: test-deps
	PODSTEAD_TEST_WHOLE=1 $(GO) test -count=1 -timeout 60m -v ./test/conformance

# The same suite on a Docker Engine behind our runtime.
critest-docker: test-deps
	$(GO) test -count=1 -timeout 60m -v -run Docker ./test/critest -docker

# The kernel tests and the end-to-end tests on a stock kernel with cgroup v2, in
# virtual machines, the last with systemd in charge for what needs that; see
# docs/testing.md. Slow: for releases, and for changes that touch cgroups or the
# kernel. With -k all of them are run whatever fails, with -j2 two at a time.
test-vm: test-vm-engine test-vm-agent test-vm-node test-vm-oci test-vm-suites test-vm-critest test-vm-boxes test-vm-systemd
test-vm-boxes:
	test/vm/run ./sys/... ./cgroup/... ./image/... ./network/... ./supervisor/... ./test/leak ./test/host
test-vm-oci:
	test/vm/run ./oci/...
test-vm-engine:
	test/vm/run ./engine/...
test-vm-agent:
	test/vm/run ./agent/e2etest ./agent/internal/pressure ./agent/internal/logind ./agent/internal/volume
test-vm-node:
	test/vm/run ./test/restart ./test/e2e ./test/crictl ./test/hostile
test-vm-suites: # of containerd the part in which it runs ours
	TESTFLAGS='-test.run=EngineServed|Runc|Crun|Shim|ContainerdOnOurs' test/vm/run ./test/conformance
test-vm-critest: # once; serially, and again and again, it runs elsewhere
	TESTFLAGS=-test.run=Parallel test/vm/run ./test/critest
test-vm-systemd:
	VM_INIT=systemd TESTFLAGS='-test.run=Systemd|Rootless|Delegated' test/vm/run ./cgroup/systemd ./agent/internal/kubeletapi ./oci ./test/service

# SELinux on such a kernel, with a small policy of ours, enforcing.
test-selinux:
	VM_SECURITY=selinux TESTFLAGS='-test.v -test.run=SELinux' test/vm/run ./engine
	VM_SECURITY=selinux TESTFLAGS='-test.v -test.run=Serial -focus=SELinux' test/vm/run ./test/critest

# The validation programs of opencontainers/runtime-tools on our OCI runtime, runc
# and crun. "make test" has some of them, on ours.
test-validation: test-deps
	$(GO) test -count=1 -v ./test/validation -all

# A stock kubelet, built from its module in some minutes, on our runtime.
test-kubelet: test-deps
	cd test/tools/kubelet && $(GO) build -ldflags '$(LDFLAGS) -X k8s.io/component-base/version.gitVersion=v1.36.3' -o ../bin/kubelet k8s.io/kubernetes/cmd/kubelet
	PODSTEAD_TEST_KUBELET=$(CURDIR)/test/tools/bin/kubelet $(GO) test -count=1 -v ./test/kubelet

# Pods with gVisor's kernel. Building its runtime from the module takes minutes.
test-gvisor: test-deps
	GO=$(GO) test/tools/gvisor/build test/tools/bin/gvisor
	PODSTEAD_TEST_RUNSC=$(CURDIR)/test/tools/bin/gvisor/runsc $(GO) test -p 1 -count=1 -timeout 30m -v -run GVisor ./engine ./test/conformance ./test/e2e

# The tests of shims with containerd's newest shim for runc, protocol 3.
test-shim: test-deps
	cd test/tools/containerd && $(GO) build -ldflags '$(LDFLAGS)' -o ../bin/shim/containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	PODSTEAD_TEST_WHOLE=1 PODSTEAD_TEST_SHIM=$(CURDIR)/test/tools/bin/shim/containerd-shim-runc-v2 $(GO) test -count=1 -v -run TestShim ./test/conformance

# Side by side with containerd, where that is installed; see docs/bench.md.
bench: test-deps
	$(GO) run ./test/bench

# The agent in simulated worlds, from any seed on; see docs/testing.md.
simulate:
	$(GO) test -count=1 -v -timeout 30m ./agent -run 'TestSimulation(OfPreemption)?$$' -sim.first 0 -sim.time 10m

# podstead-oci, and our supervisor, side by side with crun and runc.
bench-oci: test-deps
	$(GO) run ./test/bench/oci

# Whole nodes, from manifests: ours, a stock kubelet (PODSTEAD_TEST_KUBELET, see
# test-kubelet) on containerd, and podman kube play.
bench-node: test-deps
	$(GO) run ./test/bench/node

# What becomes of the manifests below DIR; see docs/manifests.md.
manifests: build
	-bin/podstead check --table $(DIR)
	PODSTEAD_TEST_MANIFESTS=$(abspath $(DIR)) $(GO) test -count=1 -v -timeout 30m -run PublicManifests ./test/e2e

# A minute for each fuzz target.
fuzz:
	test/fuzz 60s

clean:
	rm -rf bin
