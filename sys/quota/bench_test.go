package quota

import (
	"os"
	"path/filepath"
	"testing"

	"podstead/sys/quota/quotatest"
)

// BenchmarkUsage asks for what a project takes.
func BenchmarkUsage(b *testing.B) {
	for _, kind := range quotatest.Kinds {
		b.Run(kind, func(b *testing.B) {
			mnt := b.TempDir()
			quotatest.Mount(b, kind, mnt)
			p, err := Open(mnt)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			dir := filepath.Join(mnt, "dir")
			if err := os.Mkdir(dir, 0o700); err != nil {
				b.Fatal(err)
			}
			if err := p.Add(dir); err != nil {
				b.Fatal(err)
			}
			project, err := projectOf(dir)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := p.Usage(project); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
