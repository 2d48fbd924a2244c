package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// TestLibrariesLogAsWeDo: what Kubernetes' libraries log has our format, and no
// line of its own.
func TestLibrariesLogAsWeDo(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stderr := os.Stderr
	os.Stderr = w
	_, err = (&options{logLevel: "info"}).logger()
	klog.Warningf("Stream rejected: %v", "nobody wants it")
	os.Stderr = stderr
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); !strings.HasPrefix(got, "time=") || !strings.Contains(got, `msg="Stream rejected: nobody wants it"`) || strings.Count(got, "\n") != 1 {
		t.Errorf("it says %q", got)
	}
}
