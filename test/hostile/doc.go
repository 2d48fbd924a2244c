// Package hostile holds tests that attack the real programs and let accidents
// happen to them: images, manifests and requests made to break out or to break
// down, containers that behave as badly as they can, full and read-only disks,
// kernels that lack something, and an engine that is killed at any moment.
//
// Each asks the same of the node: an error that names the cause, or success
// that harms nobody; the host as it was; nothing left behind; and a node that
// goes on working, with the same engine process.
package hostile
