package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Inquirer is a Handler of a program that may not be there, or not tell what it
// can do.
type Inquirer interface {
	Handler
	// Trouble says why pods cannot be run by the handler now, or what of it is not
	// known; nil: all is well.
	Trouble() error
}

// knowledge is what a runtime has said, and which program that was.
type knowledge struct {
	path     string
	file     os.FileInfo
	supports Features
	version  string
	err      error
}

// askTimeout bounds the question what a runtime can do.
const askTimeout = 10 * time.Second

// know asks the runtime what it can do, unless the program that was asked is
// still there as it was. One that does not know the question can do nothing
// beyond the specification's first version.
func (h *OCI) know() *knowledge {
	path, err := h.program()
	if err != nil {
		return &knowledge{err: err}
	}
	file, err := os.Stat(path)
	if err != nil {
		return &knowledge{err: err}
	}
	k := h.known.Load()
	if k != nil && k.path == path && os.SameFile(k.file, file) && k.file.ModTime().Equal(file.ModTime()) {
		return k
	}
	k = &knowledge{path: path, file: file}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	ask := h.ask
	if ask == nil {
		ask = func(ctx context.Context) ([]byte, error) { return h.output(ctx, "features") }
	}
	said, err := ask(ctx)
	if err == nil {
		err = k.learn(said, h.Host)
	}
	if err != nil {
		k.err = fmt.Errorf("handler %s does not tell what it can do: %w", h.Name, err)
	}
	h.known.Store(k)
	return k
}

// learn takes over what a runtime says, as far as the host allows.
func (k *knowledge) learn(said []byte, host Features) error {
	var f features.Features
	if err := json.Unmarshal(said, &f); err != nil {
		return err
	}
	k.version = f.OCIVersionMax
	k.supports = Features{
		RecursiveReadOnlyMounts: host.RecursiveReadOnlyMounts && slices.Contains(f.MountOptions, "rro"),
		// The root is idmapped for the runtime, volumes by it.
		UserNamespaces: host.UserNamespaces && mapsIDs(&f),
	}
	return nil
}

// mapsIDs tells whether a runtime has user namespaces, and idmapped mounts.
func mapsIDs(f *features.Features) bool {
	if f.Linux == nil || !slices.Contains(f.Linux.Namespaces, string(specs.UserNamespace)) {
		return false
	}
	x := f.Linux.MountExtensions
	return x != nil && x.IDMap != nil && x.IDMap.Enabled != nil && *x.IDMap.Enabled
}

// Features implements Handler.
func (h *OCI) Features() Features { return h.know().supports }

// Trouble implements Inquirer.
func (h *OCI) Trouble() error { return h.know().err }
