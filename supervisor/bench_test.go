package supervisor

import (
	"context"
	"fmt"
	"os"
	"testing"
)

// BenchmarkPump moves output from a process's write to its log file, the
// process included: 64 KiB writes of lines of some length.
func BenchmarkPump(b *testing.B) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for _, line := range []int{100, 1000, 64 << 10} {
		b.Run(fmt.Sprintf("line%d", line), func(b *testing.B) {
			ctx, dir := context.Background(), b.TempDir()
			c, err := Ensure(ctx, dir)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			events, err := c.Events(ctx)
			if err != nil {
				b.Fatal(err)
			}
			log := LogFile{Path: dir + "/log", MaxBytes: 64 << 20, MaxFiles: 2}
			l := Launch{ID: "a", Log: log}
			program := argv(self, "writer", itoa(line), itoa(b.N))
			if _, _, err := c.launch(ctx, l, program, false); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(64 << 10)
			b.ResetTimer()
			if _, err := c.Start(ctx, "a"); err != nil {
				b.Fatal(err)
			}
			if e := <-events; e.Process.ExitCode != 0 || e.Process.LostOutput != 0 {
				b.Errorf("%+v", e)
			}
			b.StopTimer()
			if err := c.Forget(ctx, "a"); err != nil {
				b.Error(err)
			}
		})
	}
}
