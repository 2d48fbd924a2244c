// Package critest runs critest, the validation suite of Kubernetes' cri-tools,
// against our own CRI runtime, and on demand against containerd, which shows
// what the machine rules out. critest is built from its module (test/tools). The
// images that it pulls from registry.k8s.io and gcr.io are made here and served
// on loopback, where a mirror configuration leads the runtime.
//
// A spec that fails is a failed test, and so is one that is skipped for a reason
// that is not in the list of reasons.
package critest
