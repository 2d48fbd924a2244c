package host

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestNetworkIsPrivate(t *testing.T) {
	Require(t)
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("interfaces are %v, want lo alone and up", links)
	}
	devices, err := os.ReadDir("/sys/class/net")
	if err != nil || len(devices) != 1 {
		t.Errorf("/sys/class/net shows %v, %v; want lo alone", devices, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestRunIsEmptyAndCgroupsAreThere(t *testing.T) {
	Require(t)
	entries, err := os.ReadDir("/run")
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "netns" {
		t.Errorf("/run holds %v, want netns alone", entries)
	}
	procs, _ := filepath.Glob("/sys/fs/cgroup/cgroup.procs")
	below, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if len(procs)+len(below) == 0 {
		t.Error("no cgroup hierarchy is mounted")
	}
}

func TestProcessesAreOurs(t *testing.T) {
	Require(t)
	if os.Getppid() != 1 {
		t.Errorf("parent is %d, want the host's init", os.Getppid())
	}
	if Name() == "" {
		t.Error("the host has no name")
	}
}
