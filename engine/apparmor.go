package engine

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// defaultProfile is what RuntimeDefault means. The kernel keeps it until the
// host's next start, as the containers do that may outlive an engine.
//
//go:embed apparmor.profile
var defaultProfile []byte

const defaultProfileName = "podstead-default"

// defaultAppArmor returns a function that loads the default profile, or
// replaces what another version has loaded, when it is first wanted.
func defaultAppArmor() func() (string, error) {
	var mu sync.Mutex
	var done bool
	return func() (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if done && loadedAppArmor(defaultProfileName) {
			return defaultProfileName, nil
		}
		parser, err := appArmorParser()
		if err != nil {
			return "", err
		}
		cmd := exec.Command(parser, "--replace", "--skip-cache")
		cmd.Stdin = bytes.NewReader(defaultProfile)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("load profile %s: %s: %w: %s", defaultProfileName, parser, err, bytes.TrimSpace(out))
		}
		done = true
		return defaultProfileName, nil
	}
}

// appArmorParser finds the only program that compiles profiles. A service's
// PATH may lack the directory where distributions have it.
func appArmorParser() (string, error) {
	if path, err := exec.LookPath("apparmor_parser"); err == nil {
		return path, nil
	}
	const usual = "/usr/sbin/apparmor_parser"
	if _, err := os.Stat(usual); err != nil {
		return "", fmt.Errorf("load profile %s: apparmor_parser is not installed", defaultProfileName)
	}
	return usual, nil
}

func loadedAppArmor(profile string) bool {
	f, err := os.Open("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// "NAME (enforce)"; a name may have spaces.
		line := lines.Text()
		if i := strings.LastIndex(line, " ("); i > 0 && line[:i] == profile {
			return true
		}
	}
	return false
}
