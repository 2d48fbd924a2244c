// Package iptables keeps the chains that a kubelet has in the host's firewall,
// which other programs look for (KEP-3178). It asks the host's own iptables and
// ip6tables, since it is their kind, nft or legacy, that the chains tell of. It is
// not the network of pods, which needs none of them.
//
// What it makes stays when the agent ends: a kube-proxy shares it, and the next
// agent finds it there.
package iptables

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"time"
)

const (
	hint     = "KUBE-IPTABLES-HINT"
	canary   = "KUBE-KUBELET-CANARY"
	firewall = "KUBE-FIREWALL"
)

// period is how often Keep looks whether somebody took a chain away; a kubelet's.
const period = time.Minute

// timeout is for one call; the programs wait for their lock for less.
const timeout = 20 * time.Second

// rule is one of a chain that must exist.
type rule struct {
	table, chain string
	first        bool // it goes before the others of its chain
	spec         []string
}

// chains are those of both families, as {table, name}. The hint tells other programs
// which kind of iptables is used here. The canaries tell only that a kubelet is
// here; older programs take them for the hint.
func chains() [][2]string {
	return [][2]string{{"mangle", hint}, {"mangle", canary}, {"nat", canary}, {"filter", canary}}
}

// martians are the rules against CVE-2020-8558: with route_localnet, which a
// kube-proxy sets, neighbours could reach what listens on loopback only. IPv6
// has no such thing. A kube-proxy makes the same rule, and it has to be equal.
func martians() []rule {
	return []rule{
		{"filter", "OUTPUT", true, []string{"-j", firewall}},
		{"filter", "INPUT", true, []string{"-j", firewall}},
		{"filter", firewall, false, []string{"-m", "comment", "--comment", "block incoming localnet connections",
			"--dst", "127.0.0.0/8", "!", "--src", "127.0.0.0/8",
			"-m", "conntrack", "!", "--ctstate", "RELATED,ESTABLISHED,DNAT", "-j", "DROP"}},
	}
}

// Keep makes the chains and, until ctx ends, puts back what goes missing.
func Keep(ctx context.Context, log *slog.Logger) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	k := keeper{log: log, warned: map[string]string{}}
	for {
		k.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

type keeper struct {
	log    *slog.Logger
	warned map[string]string // by program
}

// round warns about what cannot be made, once for as long as the reason is the
// same: no pod depends on it.
func (k keeper) round(ctx context.Context) {
	for _, program := range []string{"iptables", "ip6tables"} {
		why := ""
		if err := Ensure(ctx, program); ctx.Err() != nil {
			return
		} else if err != nil {
			why = err.Error()
		}
		if why != "" && why != k.warned[program] {
			k.log.Warn("makeIPTablesUtilChains: the firewall's chains for other programs are not all there", "program", program, "error", why)
		}
		k.warned[program] = why
	}
}

// Ensure makes what is not there of the chains of one program's family, and leaves
// all else as it is.
func Ensure(ctx context.Context, program string) error {
	if _, err := exec.LookPath(program); err != nil {
		return err
	}
	for _, c := range chains() {
		if err := ensureChain(ctx, program, c[0], c[1]); err != nil {
			return err
		}
	}
	if program == "ip6tables" {
		return nil
	}
	if err := ensureChain(ctx, program, "filter", firewall); err != nil {
		return err
	}
	for _, r := range martians() {
		if run(ctx, program, r.table, "-C", r.chain, r.spec...) == nil {
			continue
		}
		verb := "-A"
		if r.first {
			verb = "-I"
		}
		if err := run(ctx, program, r.table, verb, r.chain, r.spec...); err != nil {
			return err
		}
	}
	return nil
}

// ensureChain asks first: that a chain is there already is no error of its own.
func ensureChain(ctx context.Context, program, table, chain string) error {
	if run(ctx, program, table, "-S", chain) == nil {
		return nil
	}
	return run(ctx, program, table, "-N", chain)
}

// run waits for the lock that all programs of this kind share.
func run(ctx context.Context, program, table, verb, chain string, spec ...string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := append([]string{"-w", "5", "-t", table, verb, chain}, spec...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s -t %s %s %s: %w: %s", program, table, verb, chain, err, bytes.TrimSpace(out))
	}
	return nil
}
