package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// ForwardDrops names the chains of others that drop forwarded packets unless
// one of their own rules accepts them, as Docker and ufw set them up. A packet
// must pass all chains: no rule of ours can overrule them.
func (t *Table) ForwardDrops() ([]string, error) {
	var chains []*nftables.Chain
	err := t.do(func(c *nftables.Conn) (err error) {
		chains, err = c.ListChains()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var drops []string
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		switch c.Table.Family {
		case nftables.TableFamilyIPv4:
			drops = append(drops, fmt.Sprintf("chain ip %s %s", c.Table.Name, c.Name))
		case nftables.TableFamilyIPv6:
			if t.has(unix.NFPROTO_IPV6) {
				drops = append(drops, fmt.Sprintf("chain ip6 %s %s", c.Table.Name, c.Name))
			}
		case nftables.TableFamilyINet:
			drops = append(drops, fmt.Sprintf("chain inet %s %s", c.Table.Name, c.Name))
		}
	}
	legacy, err := legacyForwardDrops()
	if err != nil {
		return drops, fmt.Errorf("read policy of iptables-legacy chain FORWARD: %w", err)
	}
	if legacy {
		drops = append(drops, "iptables-legacy chain FORWARD")
	}
	return drops, nil
}

func (t *Table) has(nfproto byte) bool {
	return slices.ContainsFunc(t.families, func(f *family) bool { return f.nfproto == nfproto })
}

// Of linux/netfilter_ipv4/ip_tables.h and x_tables.h.
const (
	iptSoGetInfo    = 64
	iptSoGetEntries = 65
	hookForward     = 2  // NF_INET_FORWARD
	entryTarget     = 88 // offset of ipt_entry.target_offset
	targetVerdict   = 32 // offset of xt_standard_target.verdict
	verdictDrop     = -1 // -NF_DROP - 1
	maxEntries      = 1 << 26
)

type iptInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	numEntries uint32
	size       uint32
}

// legacyForwardDrops asks the kernel's older packet filter for the policy of
// its chain FORWARD. It takes care not to bring that filter to life.
func legacyForwardDrops() (bool, error) {
	tables, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if errors.Is(err, os.ErrNotExist) || err == nil && !slices.Contains(strings.Fields(string(tables)), "filter") {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var info iptInfo
	copy(info.name[:], "filter")
	if err := getsockopt(fd, iptSoGetInfo, unsafe.Pointer(&info), unsafe.Sizeof(info)); err != nil {
		return false, err
	}
	if info.size > maxEntries {
		return false, fmt.Errorf("%d bytes of rules", info.size)
	}
	// struct ipt_get_entries: name, size, padding to 8 bytes, rules.
	const header = 40
	buf := make([]byte, header+int(info.size))
	copy(buf, "filter")
	binary.NativeEndian.PutUint32(buf[32:], info.size)
	if err := getsockopt(fd, iptSoGetEntries, unsafe.Pointer(&buf[0]), uintptr(len(buf))); err != nil {
		return false, err
	}
	return policyDrops(buf[header:], info.underflow[hookForward])
}

// policyDrops reads the verdict of the rule at an offset, which is the policy of
// a chain.
func policyDrops(rules []byte, at uint32) (bool, error) {
	if uint64(at)+entryTarget+2 > uint64(len(rules)) {
		return false, errors.New("chain is outside of the rules")
	}
	verdict := uint64(at) + uint64(binary.NativeEndian.Uint16(rules[at+entryTarget:])) + targetVerdict
	if verdict+4 > uint64(len(rules)) {
		return false, errors.New("verdict is outside of the rules")
	}
	return int32(binary.NativeEndian.Uint32(rules[verdict:])) == verdictDrop, nil
}

func getsockopt(fd, opt int, val unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, uintptr(opt),
		uintptr(val), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}
