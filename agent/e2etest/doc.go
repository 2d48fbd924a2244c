// Package e2etest runs the agent for real on runtimes behind their sockets:
// containerd with runc, and our own engine in another process. It shows that
// the agent needs nothing of a runtime but CRI, and what a user sees through
// its API is the same on both. It holds tests only.
package e2etest
