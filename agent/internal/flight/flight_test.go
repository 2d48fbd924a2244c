package flight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podstead/agent/client"
	"podstead/cri/tracing"
)

func what(r *Recorder) string {
	var out []string
	for _, e := range r.Entries() {
		out = append(out, e.What)
	}
	return strings.Join(out, " ")
}

func begin(ctx context.Context, kind, what string) func(error) {
	_, end := Begin(ctx, kind, what)
	return end
}

func TestRecorderOutlivesTheAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	path := filepath.Join(dir, "flight.jsonl")
	r := Open(path, tracing.Tracer(nil))
	ctx := With(context.Background(), r, "web")
	begin(ctx, client.FlightCall, "one")(nil) // before the pod has a directory
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	begin(ctx, client.FlightStep, "two")(errors.New("no: " + strings.Repeat("x", 1000)))
	begin(context.Background(), client.FlightCall, "nobody's")(nil)
	for range 2 { // a crash in the middle of a line costs that line
		again := Open(path, tracing.Tracer(nil))
		if got := what(again); got != "one two" {
			t.Errorf("the next agent finds %q", got)
		}
		if e := again.Entries()[1]; e.Container != "web" || e.Kind != client.FlightStep || !strings.HasPrefix(e.Error, "no: xxx") || len(e.Error) > 510 {
			t.Errorf("%+v", e)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString(`{"what":"cut`)
		f.Close()
	}
}

func TestRecorderIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flight.jsonl")
	r := Open(path, tracing.Tracer(nil))
	for i := range 10*kept + 1 {
		r.Add(client.FlightEntry{What: fmt.Sprint(i)})
	}
	for _, r := range []*Recorder{r, Open(path, tracing.Tracer(nil))} {
		got := r.Entries()
		if len(got) != kept || got[kept-1].What != fmt.Sprint(10*kept) {
			t.Errorf("%d entries, the last %+v", len(got), got[len(got)-1])
		}
	}
	data, err := os.ReadFile(path)
	if n := strings.Count(string(data), "\n"); err != nil || n > 2*kept {
		t.Errorf("the file has %d lines, %v", n, err)
	}
}

func TestRecorderHidesSecrets(t *testing.T) {
	r := Open(filepath.Join(t.TempDir(), "flight.jsonl"), tracing.Tracer(nil))
	ctx := With(context.Background(), r, "web")
	r.Hide([]string{"hunter2\n", "on", ""})
	begin(ctx, client.FlightStep, "start")(errors.New("exec /bin/hunter2: no such file or directory"))
	r.Hide(nil)
	begin(ctx, client.FlightStep, "start")(errors.New("exec /bin/hunter2"))
	if e := r.Entries(); e[0].Error != "exec /bin/…: no such file or directory" || e[1].Error != "exec /bin/hunter2" {
		t.Errorf("%+v", e)
	}
}
