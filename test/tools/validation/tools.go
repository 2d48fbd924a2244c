//go:build tools

// Package validation names what tests build from this module: its programs can
// be built, not imported.
package validation
