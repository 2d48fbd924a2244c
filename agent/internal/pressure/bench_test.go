package pressure

import "testing"

// BenchmarkRead is what an idle node does every ten seconds.
func BenchmarkRead(b *testing.B) {
	h := Host{NodeFs: b.TempDir(), ImageFs: "/"}
	for b.Loop() {
		if _, err := h.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
