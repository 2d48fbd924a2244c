// Command podstead is the node agent, the CRI runtime, the OCI runtime and
// their command line in one binary.
package main

func main() {}
