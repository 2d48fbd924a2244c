package critest

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
	critestVariable  = "PODSTEAD_TEST_CRITEST"
	podsteadVariable = "PODSTEAD_TEST_PODSTEAD"
	standinVariable  = "PODSTEAD_TEST_STANDIN"
	// containerdVariable is a directory.
	containerdVariable = "PODSTEAD_TEST_CONTAINERD"
)

var (
	withPeer   = flag.Bool("peer", false, "run critest on containerd, too, whose build takes minutes")
	withDocker = flag.Bool("docker", false, "run critest on a Docker Engine, too")
	handler    = flag.String("handler", "", "run critest with this `RUNTIME`, the path of a program like runc or of a containerd shim")
	focus      = flag.String("focus", "", "run only specs whose names match this `REGEXP`")
	websocket  = flag.Bool("websocket", false, "stream over WebSockets, not SPDY")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Short() && os.Getenv(critestVariable) == "" {
		needed := map[string]func() (string, error){
			critestVariable: programs.Critest, podsteadVariable: programs.Podstead, standinVariable: programs.Standin,
		}
		if *withPeer {
			needed[containerdVariable] = programs.Containerd
		}
		for variable, build := range needed {
			path, err := build()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Setenv(variable, path)
		}
	}
	host.Main(m)
}
