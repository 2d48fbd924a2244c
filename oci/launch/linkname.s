// This file has no code: its presence lets fork_linux.go declare functions
// without bodies, which the linker finds in the Go runtime.
