// Package crictl runs the stock crictl, as a user would, against containerd and
// against our own CRI runtime, and looks at what it prints.
package crictl
