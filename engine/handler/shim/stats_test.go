package shim

import (
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"podstead/cgroup"
)

func TestReadStats(t *testing.T) {
	at := time.Unix(1, 0)
	for url, m := range map[string]proto.Message{
		"io.containerd.cgroups.v1.Metrics": &v1.Metrics{
			CPU: &v1.CPUStat{Usage: &v1.CPUUsage{Total: 7000}}, Pids: &v1.PidsStat{Current: 3},
			Memory: &v1.MemoryStat{Usage: &v1.MemoryEntry{Usage: 100, Limit: 1<<63 - 4096}, TotalInactiveFile: 30, TotalRSS: 50},
		},
		"io.containerd.cgroups.v2.Metrics": &v2.Metrics{
			CPU: &v2.CPUStat{UsageUsec: 7}, Pids: &v2.PidsStat{Current: 3},
			Memory: &v2.MemoryStat{Usage: 100, UsageLimit: 1<<64 - 1, InactiveFile: 30, Anon: 50},
		},
	} {
		value, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readStats(&anypb.Any{TypeUrl: url, Value: value}, at)
		want := cgroup.Stats{
			Time: at, CPUNanoseconds: 7000, HasMemory: true, MemoryBytes: 100, WorkingSetBytes: 70, RSSBytes: 50, HasPids: true, Pids: 3,
		}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", url, got, err, want)
		}
	}
	if _, err := readStats(&anypb.Any{TypeUrl: "else"}, at); err == nil {
		t.Error("statistics of an unknown type are read")
	}
}
