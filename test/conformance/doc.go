// Package conformance runs the conformance suite of cri on real runtimes, in a
// host of their own: on containerd, to check the suite itself, and on our
// engine behind a socket.
package conformance
