// Package sys holds the small leaf helpers that every box may use: an undo
// stack, atomic files, descriptor passing over seqpacket sockets, pidfds and
// namespace files. It imports the standard library and golang.org/x/sys only,
// keeps no state and starts no goroutine of its own accord.
package sys
