// Command podstead-supervisor is the parent of every container; see package
// supervisor.
package main

func main() {}
