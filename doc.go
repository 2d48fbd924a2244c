// Package podstead has no code of its own: the boxes are the folders, and
// arch_test.go holds the picture of how they may depend on each other.
package podstead
