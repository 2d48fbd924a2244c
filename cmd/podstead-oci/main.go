// Command podstead-oci is the OCI runtime alone, for callers of runc: a small
// binary starts faster than the whole node's, which has the same commands as
// "podstead oci".
package main

import (
	"os"

	"podstead/oci"
)

func main() { os.Exit(oci.Main(os.Args[1:])) }
