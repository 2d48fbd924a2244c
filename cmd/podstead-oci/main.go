// Command podstead-oci is the OCI runtime alone, for callers of runc: a small
// binary starts faster than the whole node's, which has the same commands as
// "podstead oci".
package main

import (
	"os"

	"podstead/oci"
	"podstead/oci/early"
)

func main() {
	if os.Getenv("GOMAXPROCS") == early.OneProcessor {
		os.Unsetenv("GOMAXPROCS")
	}
	os.Exit(oci.Main(os.Args[1:]))
}
