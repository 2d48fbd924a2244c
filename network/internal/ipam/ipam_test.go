package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// addrs reads addresses that are separated by spaces.
func addrs(text string) (all []netip.Addr) {
	for _, s := range strings.Fields(text) {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestPoolGivesTheLongestReleasedLast(t *testing.T) {
	p, err := NewPool(prefixes("10.0.0.0/29"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	get := func(want string) []netip.Addr {
		t.Helper()
		a, err := p.Get()
		if err != nil || len(a) != 1 || a[0].String() != want {
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

func TestPoolOfTwoFamilies(t *testing.T) {
	p, err := NewPool(prefixes("10.0.0.0/29", "fd00:1::/64"), netip.MustParseAddr("10.0.0.4"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Get()
	if err != nil || len(got) != 2 || got[0].String() != "10.0.0.5" || got[1].String() != "fd00:1::5" {
		t.Fatalf("got %v, %v", got, err)
	}
	for text, ok := range map[string]bool{
		"10.0.0.3 fd00:1::3": true, "10.0.0.4": true, "fd00:1::2": true, // a lease may be of one family
		"10.0.0.6 fd00:1::5": false, "10.0.0.5": false, "fd00:1::5": false, "fd00:1::1": false,
		"fd00:1::1:0:0:6": false, "fd00:1::7": false, "fd00:2::6": false, "10.0.0.7": false, "": false,
	} {
		if err := p.Take(addrs(text)); (err == nil) != ok {
			t.Errorf("Take(%s): %v", text, err)
		}
	}
	if got, err := p.Get(); err != nil || got[1].String() != "fd00:1::6" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := p.Get(); err == nil || !strings.Contains(err.Error(), "10.0.0.0/29,fd00:1::/64: all 5 are in use") {
		t.Errorf("got %v", err)
	}
}

func TestPoolOfIPv6(t *testing.T) {
	p, err := NewPool(prefixes("2001:db8:0:1:ffff:ffff:ffff:0/120"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	for range 254 {
		if _, err := p.Get(); err != nil {
			t.Fatal(err)
		}
	}
	if a, err := p.Get(); err == nil {
		t.Errorf("got %v of a full subnet", a)
	}
	if p.Take(addrs("2001:db8:0:1:ffff:ffff:ffff:ff")) == nil {
		t.Error("the last address was not handed out")
	}
}

func TestPoolTake(t *testing.T) {
	p, _ := NewPool(prefixes("10.0.0.0/29"), netip.MustParseAddr("10.0.0.4"))
	take := func(a string, ok bool) {
		t.Helper()
		if err := p.Take(addrs(a)); (err == nil) != ok {
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
		if len(seen) == 0 && a[0] != netip.MustParseAddr("10.0.0.6") {
			t.Errorf("first is %s, want the one after those in use", a)
		}
		if seen[a[0]] || a[0] == netip.MustParseAddr("10.0.0.5") {
			t.Errorf("%s given out twice", a)
		}
		seen[a[0]] = true
	}
	if len(seen) != 4 {
		t.Errorf("got %v", seen)
	}
}

func TestCheck(t *testing.T) {
	for s, ok := range map[string]bool{
		"10.0.0.0/24": true, "10.0.0.0/30": true, "10.0.0.0/31": false, "10.0.0.0/7": false,
		"fd00::/64": true, "fd00::/126": true, "fd00::/127": false, "fe80::/64": false, "ff00::/64": false,
		"127.0.0.0/16": false, "224.0.0.0/8": false, "::ffff:10.0.0.0/120": false,
		"10.0.0.0/24 fd00::/64": true, "fd00::/64 10.0.0.0/24": true,
		"10.0.0.0/24 10.1.0.0/24": false, "fd00::/64 fd01::/64": false, "": false,
	} {
		if err := Check(prefixes(strings.Fields(s)...)); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
	if Check([]netip.Prefix{{}}) == nil {
		t.Error("no prefix at all is accepted")
	}
}

func TestChoose6(t *testing.T) {
	a := Choose6("one", nil)
	if a != Choose6("one", nil) || a.Bits() != 64 || a.Addr().As16()[0] != 0xfd {
		t.Errorf("got %s and %s", a, Choose6("one", nil))
	}
	if b := Choose6("two", nil); b == a {
		t.Errorf("two instances have %s", a)
	}
	if b := Choose6("one", []netip.Prefix{a}); b.Overlaps(a) {
		t.Errorf("%s is taken", b)
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
		p, _ := NewPool(prefixes("10.0.0.0/28", "fd00::/64"), netip.Addr{})
		held := map[netip.Addr]bool{}
		for _, op := range ops {
			n := op & 15
			both := []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, n}), netip.AddrFrom16([16]byte{0: 0xfd, 15: n})}
			addr := both[0]
			switch op >> 6 {
			case 0, 1:
				a, err := p.Get()
				if (err == nil) != (len(held) < 13) || err == nil && held[a[0]] {
					t.Fatalf("Get: %s, %v with %v", a, err, held)
				}
				if err == nil {
					held[a[0]] = true
				}
			case 2:
				p.Put(both)
				delete(held, addr)
			case 3:
				if err := p.Take(both); (err == nil) != (n >= 2 && n <= 14 && !held[addr]) {
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
