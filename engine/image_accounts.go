package engine

import (
	"sync"

	"podstead/engine/internal/spec"
	"podstead/engine/internal/tree"
)

// The bounds of the cache: images in use are few, and their files small. Large
// ones are read each time: a megabyte of commas is a million members of a group.
const (
	maxCachedAccounts     = 128
	maxCachedAccountBytes = 64 << 10
)

// accountCache keeps the users and groups of images, which never change. The
// zero value is ready.
type accountCache struct {
	mu      sync.Mutex
	byImage map[string]spec.Accounts
}

func (a *accountCache) get(imageID string, lower []string) (spec.Accounts, error) {
	a.mu.Lock()
	got, ok := a.byImage[imageID]
	a.mu.Unlock()
	if ok {
		return got, nil
	}
	got, size, err := readAccounts(lower)
	if err != nil || size > maxCachedAccountBytes {
		return got, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byImage == nil || len(a.byImage) >= maxCachedAccounts {
		a.byImage = map[string]spec.Accounts{}
	}
	a.byImage[imageID] = got
	return got, nil
}

// readAccounts reads an image's account files and tells how large they are.
func readAccounts(lower []string) (a spec.Accounts, size int, err error) {
	mounted, err := tree.OpenImage(lower)
	if err != nil {
		return a, 0, err
	}
	defer mounted.Close()
	passwd, err := tree.Read(mounted, "etc/passwd", spec.MaxAccountFile)
	if err != nil {
		return a, 0, err
	}
	group, err := tree.Read(mounted, "etc/group", spec.MaxAccountFile)
	if err != nil {
		return a, 0, err
	}
	return spec.ParseAccounts(passwd, group), len(passwd) + len(group), nil
}
