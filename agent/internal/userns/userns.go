// Package userns gives pods with a user namespace of their own (hostUsers:
// false) user and group IDs of the host that no other pod has: blocks of 65536
// or of a multiple of that, each recorded in its pod's directory in the kubelet's form, so that a pod
// keeps its IDs as long as it lives. See KEP-127.
package userns

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/sys"
)

// Length of a block of IDs, if nobody wants another; others are multiples of it.
const Length = 1 << 16

// Without an entry for the user kubelet in /etc/subuid, blocks are taken from
// those IDs that are neither people's nor systemd's dynamic users'.
const (
	defaultFirst = 1 << 16
	defaultIDs   = 1 << 28
)

// recordName is the file in a pod's directory.
const recordName = "userns"

// Blocks gives blocks to pods. Its methods may be called at the same time.
type Blocks struct {
	podDir func(uid string) string
	free   []span // all that pods may have

	mu   sync.Mutex
	used map[string]span // by the pod's UID; those of an earlier agent may have another length
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
// given by the files subuid and subgid. Blocks for new pods have a length, 0 for
// that which is usual.
func New(podsDir, subuid, subgid string, length uint32) (*Blocks, error) {
	b := &Blocks{used: map[string]span{}, podDir: func(uid string) string { return filepath.Join(podsDir, uid) }}
	var err error
	if b.free, err = available(subuid, subgid, uint64(cmp.Or(length, Length))); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(podsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if s, ok := b.read(e.Name()); ok {
			b.used[e.Name()] = s
		}
	}
	return b, nil
}

func (b *Blocks) read(uid string) (s span, ok bool) {
	data, err := os.ReadFile(filepath.Join(b.podDir(uid), recordName))
	var r record
	if err != nil || json.Unmarshal(data, &r) != nil || len(r.UIDMappings) != 1 {
		return span{}, false
	}
	s = span{uint64(r.UIDMappings[0].HostID), uint64(r.UIDMappings[0].Length)}
	return s, s.length > 0 && s.length%Length == 0 && s.first+s.length <= 1<<32
}

// taken tells whether another pod has some of these IDs.
func (b *Blocks) taken(s span, uid string) bool {
	for owner, other := range b.used {
		if owner != uid && s.overlaps(other) {
			return true
		}
	}
	return false
}

// Take gives a pod, whose directory is there, its block: the one that it has, or
// one that no other pod has.
func (b *Blocks) Take(uid string) (*runtimeapi.UserNamespace, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s, ok := b.read(uid); ok && !b.taken(s, uid) {
		b.used[uid] = s
		return namespace(s), nil
	}
	h := fnv.New32a()
	h.Write([]byte(b.podDir(uid)))
	start := int(h.Sum32())
	for i := range b.free {
		// Agents that know nothing of each other seldom choose the same block.
		s := b.free[(start+i)%len(b.free)]
		if b.taken(s, "") {
			continue
		}
		m := []mapping{{HostID: uint32(s.first), Length: uint32(s.length)}}
		data, err := json.Marshal(record{UIDMappings: m, GIDMappings: m})
		if err == nil {
			err = sys.WriteFileAtomic(filepath.Join(b.podDir(uid), recordName), data, 0o600, true)
		}
		if err != nil {
			return nil, fmt.Errorf("keep the pod's user IDs: %w", err)
		}
		b.used[uid] = s
		return namespace(s), nil
	}
	return nil, fmt.Errorf("all %d blocks of user IDs are in use", len(b.free))
}

// Release takes a pod's block back once nothing of the pod is left.
func (b *Blocks) Release(uid string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.used, uid)
}

func namespace(s span) *runtimeapi.UserNamespace {
	ids := []*runtimeapi.IDMapping{{HostId: uint32(s.first), ContainerId: 0, Length: uint32(s.length)}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

// span is a range of IDs.
type span struct{ first, length uint64 }

func (s span) overlaps(o span) bool {
	return o.first < s.first+s.length && s.first < o.first+o.length
}

// available lists blocks of a length: those of the user kubelet if it has been given IDs, as
// for a kubelet; else those that nobody has been given.
func available(subuid, subgid string, length uint64) ([]span, error) {
	uids, own, err := readSubids(subuid)
	if err != nil {
		return nil, err
	}
	gids, ownGroup, err := readSubids(subgid)
	if err != nil {
		return nil, err
	}
	if own != nil {
		if ownGroup == nil || *own != *ownGroup || own.first%Length != 0 || own.first == 0 || own.length < length {
			return nil, fmt.Errorf("%s and %s: the IDs of kubelet must be the same ones in both, from a multiple of %d on, and at least %d", subuid, subgid, Length, length)
		}
		return blocks(*own, nil, length), nil
	}
	free := blocks(span{defaultFirst, defaultIDs}, append(uids, gids...), length)
	if len(free) == 0 {
		return nil, fmt.Errorf("%s and %s leave no user IDs for pods", subuid, subgid)
	}
	return free, nil
}

func blocks(of span, but []span, length uint64) (out []span) {
	for s := (span{of.first, length}); s.first+length <= min(of.first+of.length, 1<<32-Length); s.first += length {
		if !slices.ContainsFunc(but, s.overlaps) {
			out = append(out, s)
		}
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
