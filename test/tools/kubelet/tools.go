//go:build tools

// Package kubelet keeps the stock kubelet among the dependencies of its module.
package kubelet

import _ "k8s.io/kubernetes/cmd/kubelet"
