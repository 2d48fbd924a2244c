// Package userns gives pods with a user namespace of their own (hostUsers:
// false) user and group IDs of the host that no other pod has: blocks of 65536,
// each recorded in its pod's directory in the kubelet's form, so that a pod
// keeps its IDs as long as it lives. See KEP-127.
package userns

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/sys"
)

// Length of a block of IDs.
const Length = 1 << 16

// Without an entry for the user kubelet in /etc/subuid, blocks are taken from
// those IDs that are neither people's nor systemd's dynamic users'.
const (
	defaultFirst = 1 << 16
	defaultCount = 1 << 12
)

// recordName is the file in a pod's directory.
const recordName = "userns"

// Blocks gives blocks to pods. Its methods may be called at the same time.
type Blocks struct {
	podDir func(uid string) string
	free   []uint32 // the first IDs of all blocks that pods may have

	mu   sync.Mutex
	used map[uint32]string // by first ID: the pod's UID
}

// record is the kubelet's.
type record struct {
	UIDMappings []mapping `json:"uidMappings"`
	GIDMappings []mapping `json:"gidMappings"`
}

type mapping struct {
	HostID      uint32 `json:"hostId"`
	ContainerID uint32 `json:"containerId"`
	Length      uint32 `json:"length"`
}

// New reads which blocks the pods below podsDir have, and which IDs others were
// given by the files subuid and subgid.
func New(podsDir, subuid, subgid string) (*Blocks, error) {
	b := &Blocks{used: map[uint32]string{}, podDir: func(uid string) string { return filepath.Join(podsDir, uid) }}
	var err error
	if b.free, err = available(subuid, subgid); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(podsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if first, ok := b.read(e.Name()); ok {
			b.used[first] = e.Name()
		}
	}
	return b, nil
}

func (b *Blocks) read(uid string) (first uint32, ok bool) {
	data, err := os.ReadFile(filepath.Join(b.podDir(uid), recordName))
	var r record
	if err != nil || json.Unmarshal(data, &r) != nil || len(r.UIDMappings) != 1 || r.UIDMappings[0].Length != Length {
		return 0, false
	}
	return r.UIDMappings[0].HostID, true
}

// Take gives a pod, whose directory is there, its block: the one that it has, or
// one that no other pod has.
func (b *Blocks) Take(uid string) (*runtimeapi.UserNamespace, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if first, ok := b.read(uid); ok && (b.used[first] == uid || b.used[first] == "") {
		b.used[first] = uid
		return namespace(first), nil
	}
	h := fnv.New32a()
	h.Write([]byte(b.podDir(uid)))
	start := int(h.Sum32())
	for i := range b.free {
		// Agents that know nothing of each other seldom choose the same block.
		first := b.free[(start+i)%len(b.free)]
		if b.used[first] != "" {
			continue
		}
		m := []mapping{{HostID: first, Length: Length}}
		data, err := json.Marshal(record{UIDMappings: m, GIDMappings: m})
		if err == nil {
			err = sys.WriteFileAtomic(filepath.Join(b.podDir(uid), recordName), data, 0o600, true)
		}
		if err != nil {
			return nil, fmt.Errorf("keep the pod's user IDs: %w", err)
		}
		b.used[first] = uid
		return namespace(first), nil
	}
	return nil, fmt.Errorf("all %d blocks of user IDs are in use", len(b.free))
}

// Release takes a pod's block back once nothing of the pod is left.
func (b *Blocks) Release(uid string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for first, owner := range b.used {
		if owner == uid {
			delete(b.used, first)
		}
	}
}

func namespace(first uint32) *runtimeapi.UserNamespace {
	ids := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: Length}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

// span is a range of IDs.
type span struct{ first, length uint64 }

func (s span) overlaps(first uint64) bool {
	return first < s.first+s.length && s.first < first+Length
}

// available lists blocks: those of the user kubelet if it has been given IDs, as
// for a kubelet; else those that nobody has been given.
func available(subuid, subgid string) ([]uint32, error) {
	uids, own, err := readSubids(subuid)
	if err != nil {
		return nil, err
	}
	gids, ownGroup, err := readSubids(subgid)
	if err != nil {
		return nil, err
	}
	if own != nil {
		if ownGroup == nil || *own != *ownGroup || own.first%Length != 0 || own.first == 0 || own.length < Length {
			return nil, fmt.Errorf("%s and %s: the IDs of kubelet must be the same ones in both, from a multiple of %d on, and at least as many", subuid, subgid, Length)
		}
		return blocks(*own, nil), nil
	}
	free := blocks(span{defaultFirst, defaultCount * Length}, append(uids, gids...))
	if len(free) == 0 {
		return nil, fmt.Errorf("%s and %s leave no user IDs for pods", subuid, subgid)
	}
	return free, nil
}

func blocks(of span, but []span) (out []uint32) {
next:
	for first := of.first; first+Length <= of.first+of.length && first+Length <= 1<<32-Length; first += Length {
		for _, s := range but {
			if s.overlaps(first) {
				continue next
			}
		}
		out = append(out, uint32(first))
	}
	return out
}

// readSubids reads a file in the form of subuid(5): NAME:FIRST:COUNT. kubelet is
// what it gives to the user of that name.
func readSubids(name string) (others []span, kubelet *span, err error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, ":")
		if len(parts) != 3 {
			return nil, nil, fmt.Errorf("%s:%d: want NAME:FIRST:COUNT", name, n)
		}
		first, err1 := strconv.ParseUint(parts[1], 10, 32)
		length, err2 := strconv.ParseUint(parts[2], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		if s := (span{first, length}); parts[0] == "kubelet" && kubelet == nil {
			kubelet = &s
		} else {
			others = append(others, s)
		}
	}
	return others, kubelet, sc.Err()
}
