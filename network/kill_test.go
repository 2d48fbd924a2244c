package network

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	testhost "podstead/test/host"
)

// victim is the environment variable that makes this binary connect and
// disconnect pods for ever.
const victim = "PODSTEAD_NETWORK_TEST_VICTIM"

type victimConfig struct {
	Name, StateDir, HostDir string
	Pods                    []Pod
}

// runVictim writes a line before each step that it takes.
func runVictim() int {
	var v victimConfig
	err := json.Unmarshal([]byte(os.Getenv(victim)), &v)
	if err == nil {
		err = v.run()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func (v victimConfig) run() error {
	ctx := context.Background()
	n, err := New(Config{Name: v.Name, StateDir: v.StateDir, HostDir: v.HostDir, Slots: 2})
	if err != nil {
		return err
	}
	for {
		for _, p := range v.Pods {
			fmt.Println("setup")
			if _, err := n.Setup(ctx, p); err != nil {
				return err
			}
		}
		for _, p := range v.Pods {
			fmt.Println("teardown")
			if err := n.Teardown(ctx, p); err != nil {
				return err
			}
		}
		fmt.Println("destroy")
		if err := n.Destroy(ctx); err != nil {
			return err
		}
	}
}

// However early or late the process is killed, the next one puts all in order.
func TestKilledAtAnyMoment(t *testing.T) {
	newLab(t)
	cfg := newConfig(t, "podtest0")
	cfg.Slots = 2
	before, linksBefore := hostState(t), links(t)
	pods := []Pod{
		testPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80}, PortMapping{HostIP: hostIP, HostPort: 9090, ContainerPort: 80}),
		testPod(t, "b", PortMapping{Protocol: "UDP", HostPort: 5353, ContainerPort: 53}),
	}
	config, err := json.Marshal(victimConfig{cfg.Name, cfg.StateDir, cfg.HostDir, pods})
	must(t, err)
	kills := testhost.Rounds(24)
	if testing.Short() {
		kills = 5
	}
	for i := range kills {
		killVictim(t, string(config), 1+i%11)
		again, err := New(cfg)
		must(t, err)
		if i%2 == 0 {
			must(t, again.Reconcile(bg, nil))
			checkEmpty(t, again)
		} else {
			// Or the engine thinks that one of them lives, and goes on with it.
			must(t, again.Reconcile(bg, []string{pods[0].ID}))
			setup(t, again, pods[0])
			teardown(t, again, pods[0])
			_, err := again.slots.stop()
			must(t, err)
			checkEmpty(t, again)
		}
		must(t, again.Close())
	}
	last, err := New(cfg)
	must(t, err)
	defer last.Close()
	ip := setup(t, last, pods[0])
	serve(t, pods[0].Netns, "tcp", ":80", "a")
	expect(t, "", "tcp", "127.0.0.1:8080", "a sees "+ip.Prev().String())
	teardown(t, last, pods[0])
	must(t, last.Destroy(bg))
	waitFor(t, func() bool { return links(t) <= linksBefore })
	if after := hostState(t); after != before {
		t.Errorf("host is not as before:\n%s\nbut:\n%s", before, after)
	}
}

// killVictim starts a victim and kills it after that many steps were begun.
func killVictim(t *testing.T, config string, steps int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victim+"="+config)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for range steps {
		if !lines.Scan() {
			break
		}
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("victim: %s", stderr.String())
	}
}

func checkEmpty(t *testing.T, n *Network) {
	t.Helper()
	if left := n.leases.all(); len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
	if n.builtin.bridge == nil {
		return
	}
	ports, err := n.builtin.bridge.Ports()
	must(t, err)
	for _, p := range ports {
		// What Teardown cut off ends with its namespace.
		if up(t, p) {
			t.Errorf("link left: %s", p)
		}
	}
	if taken, err := n.builtin.table.PortsOf("podtest0"); err != nil || len(taken) > 0 {
		t.Errorf("host ports left: %v, %v", taken, err)
	}
}
