package validation

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"podstead/test/host"
	"podstead/test/programs"
)

// These hand the paths of programs to the tests inside the host.
const (
	validationVariable = "PODSTEAD_TEST_VALIDATION"
	podsteadVariable   = "PODSTEAD_TEST_PODSTEAD"
)

var everything = flag.Bool("all", false, "run all programs, and on runc and crun too")

// quick are the programs that run without -all: those that pass wherever our
// runtime works, and do not take long.
var quick = []string{
	"create", "default", "delete_only_create_resources", "hooks_stdin", "hostname", "kill_no_effect", "killsig",
	"linux_cgroups_cpus", "linux_cgroups_relative_devices", "linux_ns_nopath", "linux_seccomp", "linux_uid_mappings",
	"poststop", "process", "process_capabilities_fail", "process_user", "root_readonly_true", "state",
}

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() == 0 && os.Getenv(validationVariable) == "" {
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	host.Main(m)
}

func build() error {
	names := quick
	if *everything {
		names = []string{"..."}
	}
	validation, err := programs.Validation(names...)
	if err != nil {
		return err
	}
	podstead, err := programs.Podstead()
	if err != nil {
		return err
	}
	os.Setenv(validationVariable, validation)
	return os.Setenv(podsteadVariable, podstead)
}
