// Package e2etest runs the agent for real on a runtime that others wrote:
// containerd with runc behind its socket. It shows that the agent needs nothing
// of the engine, and what a user sees through its API. It holds tests only.
package e2etest
