// Package validation runs the validation programs of opencontainers/runtime-tools
// on our OCI runtime: some quick ones, or with -all all of them, and then in the
// same run on runc and crun too, where they are installed. It asserts that ours
// passes at least as many as each of them, and that explained.txt says why for each
// that it does not.
package validation
