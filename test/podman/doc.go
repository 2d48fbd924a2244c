// Package podman runs Debian's podman on our OCI runtime: what its users do with
// containers and pods, as root, in a private host with storage of its own.
package podman
