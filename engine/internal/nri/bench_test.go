package nri

import (
	"log/slog"
	"path/filepath"
	"testing"
)

// BenchmarkNoPlugin is what a container's creation pays for NRI while nobody is
// connected.
func BenchmarkNoPlugin(b *testing.B) {
	p := New(Options{Socket: filepath.Join(b.TempDir(), "nri.sock"), Runtime: nothing{}, Log: slog.New(slog.DiscardHandler)})
	p.Open()
	defer p.Close()
	for b.Loop() {
		release := p.Hold()
		if !p.Idle() {
			b.Fatal("somebody is here")
		}
		release()
	}
}
