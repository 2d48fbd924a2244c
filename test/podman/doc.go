// Package podman runs Debian's podman and Docker Engine on our OCI runtime: what
// their users do with containers and pods, as root, in a private host with storage
// of its own.
package podman
