//go:build tools

// Package tools names what tests build from this module and a tool line of its
// go.mod cannot name: critest is a test binary, and this is what it is made of.
package tools

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
