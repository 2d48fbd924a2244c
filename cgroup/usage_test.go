package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseIO(t *testing.T) {
	want := []DeviceIO{
		{Major: 8, Minor: 0, ReadBytes: 4096, Reads: 1},
		{Major: 254, Minor: 0, ReadBytes: 1 << 40, WriteBytes: 8192, Reads: 3, Writes: 2},
	}
	v1 := ioTable{}
	v1.addV1("254:0 Read 1099511627776\n254:0 Write 8192\n254:0 Sync 8192\n254:0 Total 1\n8:0 Read 4096\n8:0 Write 0\nTotal 1099511636000\n", true)
	v1.addV1("254:0 Read 3\n254:0 Write 2\n8:0 Read 1\nTotal 6\n", false)
	v2 := ioTable{}
	v2.addV2("254:0 rbytes=1099511627776 wbytes=8192 rios=3 wios=2 dbytes=0 dios=0\n8:0 rbytes=4096 wbytes=0 rios=1 wios=0\n7:0 \nnonsense rbytes=1\n")
	for name, got := range map[string]ioTable{"v1": v1, "v2": v2} {
		if got := got.sorted(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestParseIOCost(t *testing.T) {
	devices := ioTable{}
	devices.addV2("8:0 rbytes=1 cost.vrate=100.00 cost.usage=9 cost.wait=8 cost.indebt=7 cost.indelay=6 cost.unheard=5\n8:16 rbytes=1 cost.unheard=1\n")
	got := devices.sorted()
	if len(got) != 2 || got[0].Cost == nil || *got[0].Cost != (IOCost{9000, 8000, 7000, 6000}) || got[1].Cost != nil {
		t.Errorf("%+v", got)
	}
}

// TestParseHugepages does it with files of both versions, since few hosts have pages.
func TestParseHugepages(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"v1": {
			"hugetlb.2MB.usage_in_bytes": "4194304\n", "hugetlb.2MB.max_usage_in_bytes": "6291456\n", "hugetlb.2MB.failcnt": "3\n",
			"hugetlb.2MB.rsvd.usage_in_bytes": "1\n", "hugetlb.1GB.usage_in_bytes": "0\n", "hugetlb.1GB.max_usage_in_bytes": "0\n", "hugetlb.1GB.failcnt": "0\n",
		},
		"v2": {
			"hugetlb.2MB.current": "4194304\n", "hugetlb.2MB.max": "max\n", "hugetlb.2MB.events": "max 3\n", "hugetlb.2MB.rsvd.current": "1\n",
			"hugetlb.1GB.current": "0\n", "hugetlb.1GB.events": "max 0\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			r := &statsReader{}
			var got []Hugepages
			if name == "v1" {
				got = r.hugepagesIn(dir, hugetlbV1)
			} else {
				got = r.hugepagesIn(dir, hugetlbV2)
			}
			want := []Hugepages{{Size: "1GB", Hits: 0}, {Size: "2MB", Bytes: 4 << 20, Hits: 3}}
			if name == "v1" {
				want[0].MaxBytes, want[1].MaxBytes = new(uint64(0)), new(uint64(6<<20))
			}
			if r.err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v", got, r.err)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	h := detect(t)
	g := newGroup(t, h)
	if err := g.Set(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](100)}}); err != nil {
		t.Fatal(err)
	}
	start(t, g, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000")
	var u Usage
	waitFor(t, "processor time", func() bool {
		var err error
		if u, err = g.Usage(); err != nil {
			t.Fatal(err)
		}
		return u.CPUNanoseconds > 0 && *u.CPUUser+*u.CPUSystem > 0 && u.RSSBytes > 0
	})
	if u.Cache == nil || u.MappedFile == nil || u.InactiveFile == nil || u.OwnPageFaults == nil || *u.OwnPageFaults == 0 {
		t.Errorf("memory is %+v", u)
	}
	if u.OOMKills == nil || *u.OOMKills != 0 {
		t.Errorf("OOM kills are %v", u.OOMKills)
	}
	if u.PidsLimit != 100 || u.Throttling == nil || !u.HasIO {
		t.Errorf("limit of processes %d, throttling %v, I/O %v", u.PidsLimit, u.Throttling, u.HasIO)
	}
	if n, err := g.CPUNanoseconds(); err != nil || n < u.CPUNanoseconds {
		t.Errorf("processor time is %d, %v; was %d", n, err, u.CPUNanoseconds)
	}
	if tids, more, err := g.Threads(100); err != nil || more || len(tids) == 0 {
		t.Errorf("threads are %v, %v, %v", tids, more, err)
	}
	if tids, more, err := g.Threads(0); err != nil || !more || len(tids) != 0 {
		t.Errorf("threads, none of which is wanted, are %v, %v, %v", tids, more, err)
	}
	if _, err := h.Group(g.Path() + "/none").Usage(); err == nil {
		t.Error("a group that does not exist has a usage")
	}
}

func BenchmarkUsage(b *testing.B) {
	h := detect(b)
	g := newGroup(b, h)
	for b.Loop() {
		if _, err := g.Usage(); err != nil {
			b.Fatal(err)
		}
	}
}
