package conformance

import (
	"fmt"
	"os"
	"testing"

	"podstead/test/host"
	"podstead/test/programs"
)

// programVariable hands the path of our program to the tests inside the host.
const programVariable = "PODSTEAD_TEST_PODSTEAD"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) == "" {
		path, err := programs.Podstead()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(programVariable, path)
	}
	host.Main(m)
}
