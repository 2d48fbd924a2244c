package ipam

import (
	"errors"
	"net/netip"
	"testing"
)

func TestPoolGivesTheLongestReleasedLast(t *testing.T) {
	p, err := NewPool(netip.MustParsePrefix("10.0.0.0/29"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	get := func(want string) netip.Addr {
		t.Helper()
		a, err := p.Get()
		if err != nil || a.String() != want {
			t.Fatalf("got %s, %v; want %s", a, err, want)
		}
		return a
	}
	two, three := get("10.0.0.2"), get("10.0.0.3")
	p.Put(two)
	p.Put(two) // again is no harm
	get("10.0.0.4")
	get("10.0.0.5")
	get("10.0.0.6")
	p.Put(three)
	get("10.0.0.2")
	get("10.0.0.3")
	var full *ExhaustedError
	if _, err := p.Get(); !errors.As(err, &full) || full.InUse != 5 {
		t.Fatalf("got %v", err)
	}
}

func TestPoolTake(t *testing.T) {
	p, _ := NewPool(netip.MustParsePrefix("10.0.0.0/29"), netip.MustParseAddr("10.0.0.4"))
	take := func(a string, ok bool) {
		t.Helper()
		if err := p.Take(netip.MustParseAddr(a)); (err == nil) != ok {
			t.Errorf("Take(%s): %v", a, err)
		}
	}
	take("10.0.0.5", true)
	take("10.0.0.5", false)
	for _, a := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.0.8", "fd00::1"} {
		take(a, false)
	}
	seen := map[netip.Addr]bool{}
	for a, err := p.Get(); err == nil; a, err = p.Get() {
		if len(seen) == 0 && a != netip.MustParseAddr("10.0.0.6") {
			t.Errorf("first is %s, want the one after those in use", a)
		}
		if seen[a] || a == netip.MustParseAddr("10.0.0.5") {
			t.Errorf("%s given out twice", a)
		}
		seen[a] = true
	}
	if len(seen) != 4 {
		t.Errorf("got %v", seen)
	}
}

func TestCheck(t *testing.T) {
	for s, ok := range map[string]bool{
		"10.0.0.0/24": true, "10.0.0.0/30": true, "10.0.0.0/31": false, "10.0.0.0/7": false,
		"fd00::/64": false, "127.0.0.0/16": false, "224.0.0.0/8": false,
	} {
		if err := Check(netip.MustParsePrefix(s)); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
	if Check(netip.Prefix{}) == nil {
		t.Error("no prefix at all is accepted")
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		taken []string
		want  string
	}{
		{nil, "10.77.0.0/22"},
		{[]string{"10.77.1.0/24"}, "10.77.4.0/22"},
		{[]string{"10.77.3.9/32", "10.77.4.0/23"}, "10.77.8.0/22"},
		{[]string{"10.77.0.0/16"}, "10.147.0.0/22"},
		{[]string{"10.0.0.0/8", "172.16.0.0/12"}, "192.168.128.0/22"},
		{[]string{"0.0.0.0/0"}, ""},
	} {
		var taken []netip.Prefix
		for _, s := range c.taken {
			taken = append(taken, netip.MustParsePrefix(s))
		}
		got, err := Choose(taken)
		if c.want == "" {
			if err == nil {
				t.Errorf("%v: got %s", c.taken, got)
			}
		} else if err != nil || got.String() != c.want {
			t.Errorf("%v: got %s, %v; want %s", c.taken, got, err, c.want)
		}
	}
}

func FuzzPool(f *testing.F) {
	f.Add([]byte{1, 2, 3, 200, 100, 0, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p, _ := NewPool(netip.MustParsePrefix("10.0.0.0/28"), netip.Addr{})
		held := map[netip.Addr]bool{}
		for _, op := range ops {
			addr := netip.AddrFrom4([4]byte{10, 0, 0, op & 15})
			switch op >> 6 {
			case 0, 1:
				a, err := p.Get()
				if (err == nil) != (len(held) < 13) || held[a] {
					t.Fatalf("Get: %s, %v with %v", a, err, held)
				}
				if err == nil {
					held[a] = true
				}
			case 2:
				p.Put(addr)
				delete(held, addr)
			case 3:
				if err := p.Take(addr); (err == nil) != (p.Allocatable(addr) && !held[addr]) {
					t.Fatalf("Take(%s): %v with %v", addr, err, held)
				} else if err == nil {
					held[addr] = true
				}
			}
			if p.InUse() != len(held) {
				t.Fatalf("%d in use, %d held", p.InUse(), len(held))
			}
		}
	})
}
