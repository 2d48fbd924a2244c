package netdev

import (
	"reflect"
	"testing"
)

const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
  eth0:    1000      10    1    2    0     0          0         0     2000      20    3    4    0     0       0          0
  net1: 18446744073709551615 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
 torn0: 1 2
`

const route = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
	"net1\t00000000\t0100580A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n" +
	"eth0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"

const route6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     net1\n" +
	"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n"

func TestCounters(t *testing.T) {
	want := []Interface{
		{Name: "eth0", RxBytes: 1000, RxPackets: 10, RxErrors: 1, RxDropped: 2, TxBytes: 2000, TxPackets: 20, TxErrors: 3, TxDropped: 4},
		{Name: "net1", RxBytes: 1<<64 - 1, RxPackets: 1, TxBytes: 7, TxPackets: 1},
	}
	if got := parseDev(dev); !reflect.DeepEqual(got, want) {
		t.Errorf("interfaces are %+v", got)
	}
}

func TestDefaultInterface(t *testing.T) {
	two := []Interface{{Name: "net1"}, {Name: "eth0"}}
	for _, test := range []struct {
		name       string
		interfaces []Interface
		four, six  string
		want       string
	}{
		{"by the IPv4 route", []Interface{{Name: "eth0"}, {Name: "net1"}}, route, "", "net1"},
		{"by the IPv6 route", []Interface{{Name: "eth0"}, {Name: "net1"}}, "", route6, "net1"},
		{"eth0 without a route", two, "", "", "eth0"},
		{"the first without eth0", []Interface{{Name: "a"}, {Name: "b"}}, "", "", "a"},
		{"a route to what is not there", []Interface{{Name: "eth0"}}, route, route6, "eth0"},
		{"none", nil, "", "", ""},
	} {
		if got := defaultInterface(test.interfaces, test.four, test.six); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestReadLeavesOutWhatIsGone(t *testing.T) {
	all, err := Read([]string{"/no/such/namespace", "/proc/self/ns/net"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := all["/proc/self/ns/net"]; !ok || len(all) != 1 {
		t.Errorf("namespaces are %v", all)
	}
}
