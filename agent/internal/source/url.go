package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"podstead/sys"
)

// URL asks a server for a manifest, again and again. What cannot be fetched or
// used changes nothing: what it said last stays in force.
type URL struct {
	Address string
	Header  http.Header
	Period  time.Duration
	// KeepFile is where the last good version is kept, across restarts.
	KeepFile string
	Decoder  *Decoder
	Log      Logger

	sum  [sha256.Size]byte
	file File
}

// Logger is what is needed of one.
type Logger interface{ Warn(msg string, args ...any) }

// fetchTimeout is the kubelet's.
const fetchTimeout = 10 * time.Second

// Run sends what the manifest says whenever that changes, first at once, until
// ctx ends.
func (u *URL) Run(ctx context.Context, out chan<- []File) error {
	u.file.Path = u.Address
	if data, err := os.ReadFile(u.KeepFile); err == nil {
		u.file.Objects, u.file.Warnings, _ = u.Decoder.Decode(data)
	}
	for first := true; ; first = false {
		if u.look(ctx) || first {
			select {
			case out <- []File{u.file}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-time.After(u.Period):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look fetches the manifest and tells whether anything is different.
func (u *URL) look(ctx context.Context) (changed bool) {
	data, err := u.fetch(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err == nil {
		sum := sha256.Sum256(data)
		if sum == u.sum && u.file.Err == nil {
			return false
		}
		var next File
		if next.Objects, next.Warnings, err = u.Decoder.Decode(data); err == nil {
			next.Path = u.Address
			u.sum, u.file = sum, next
			if err := sys.WriteFileAtomic(u.KeepFile, data, 0o600, false); err != nil {
				u.Log.Warn("keep the good version of a manifest", "file", u.Address, "error", err)
			}
			return true
		}
	}
	if old := u.file.Err; old != nil && old.Error() == err.Error() {
		return false
	}
	u.file.Err, u.file.Since = err, time.Now()
	return true
}

func (u *URL) fetch(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Address, nil)
	if err != nil {
		return nil, err
	}
	req.Header = u.Header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answers %s", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxManifest:
		return nil, fmt.Errorf("more than %d bytes", maxManifest)
	case len(data) == 0:
		return nil, errors.New("the server answers with nothing")
	}
	return data, nil
}
