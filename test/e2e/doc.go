// Package e2e has no code: its tests run the real programs as a user does, on a
// machine of their own, and assert what a user would notice. The helpers are in
// node_test.go; each other file is a feature.
package e2e
