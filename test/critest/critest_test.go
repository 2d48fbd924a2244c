package critest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podstead/image/imagetest"
	"podstead/test/host"
	"podstead/test/leak"
	"podstead/test/node"
)

// How many specs must pass: wantSpecs on every host, and wantAppArmor more where
// there is AppArmor.
const (
	wantSpecs    = 108
	wantAppArmor = 9
)

// mayBeSkipped tells, by the beginning of a spec's name, why it is not run.
func mayBeSkipped(name string) (reason string) {
	switch {
	case strings.Contains(name, "benchmark about"):
		return "critest runs benchmarks only when asked for them"
	case strings.HasPrefix(name, "AppArmor ") && !hostHasAppArmor():
		return "the host has no AppArmor"
	}
	return ""
}

// hostHasAppArmor asks as critest does.
func hostHasAppArmor() bool {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(enabled), "Y")
}

// require skips a test that cannot be run here.
func require(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("critest is not short")
	}
	host.Require(t)
}

func TestParallel(t *testing.T) { testPodstead(t, 4) }

func TestSerial(t *testing.T) { testPodstead(t, 1) }

func testPodstead(t *testing.T, processes int) {
	require(t)
	leak.Check(t, leak.Scope{Cgroup: host.Cgroup()})
	dir := t.TempDir()
	served := images(t, os.Getenv(standinVariable))
	mirror(t, dir+"/certs.d", imagetest.Registry(t, served))
	n := node.Run(t, os.Getenv(podsteadVariable), "cri", "--certs-dir", dir+"/certs.d")
	critest := retarget(t, os.Getenv(critestVariable), served["k8s-staging-cri-tools/test-image-digest:latest"].Manifest.Digest())
	judge(t, run(t, critest, n.Endpoint(), processes))
}

// excuse tells why a spec need not pass on some runtime, "" if it must. What it
// excuses must not pass.
type excuse func(spec) (reason string)

// judge makes each spec a test. All that may run must have run, and passed.
func judge(t *testing.T, specs []spec, excuses ...excuse) {
	passed, excused := 0, 0
	for _, s := range specs {
		if s.Type != "It" {
			if s.State != "passed" && s.State != "skipped" {
				t.Errorf("%s: %s", s.Type, s.Failure.Message)
			}
			continue
		}
		if *focus != "" && s.State == "skipped" && s.Failure.Message == "" {
			continue
		}
		t.Run(s.name(), func(t *testing.T) {
			for _, why := range excuses {
				reason := why(s)
				switch {
				case reason == "":
					continue
				case s.State == "passed":
					t.Errorf("passes, and is in the list of those that cannot: %s", reason)
				}
				excused++
				t.Skipf("%s: %s", s.State, reason)
			}
			at := filepath.Base(s.Failure.Location.FileName)
			switch s.State {
			case "passed":
				passed++
			case "skipped", "pending":
				if reason := mayBeSkipped(s.name()); reason != "" {
					t.Skip(reason)
				}
				t.Errorf("is skipped, and not by our list: %s", s.Failure.Message)
			default:
				t.Errorf("%s after %v, %s:%d: %s\n%s", s.State, s.RunTime.Round(time.Millisecond), at, s.Failure.Location.LineNumber, s.Failure.Message, s.Output)
			}
		})
	}
	want := wantSpecs
	if hostHasAppArmor() {
		want += wantAppArmor
	}
	if passed+excused < want && *focus == "" {
		t.Errorf("%d specs have passed, want %d", passed, want)
	}
	t.Logf("%d specs have passed, and %d need not", passed, excused)
}
