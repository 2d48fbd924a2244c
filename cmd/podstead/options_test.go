package main

import (
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	logs "k8s.io/component-base/logs/api/v1"
	"k8s.io/klog/v2"
	kubelet "k8s.io/kubelet/config/v1beta1"
	"k8s.io/utils/ptr"
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

// TestLogging: what a KubeletConfiguration says of the log, and who changes it
// while the node runs.
func TestLogging(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stderr := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = stderr }()
	for _, c := range []struct {
		format    string
		verbosity uint32
		flagged   bool
	}{{"json", 4, false}, {"text", 5, true}, {"", 2, false}} {
		n := nodeOptions{options: &options{logLevel: "info"}}
		log, err := n.logger()
		if err != nil {
			t.Fatal(err)
		}
		config := &kubelet.KubeletConfiguration{}
		config.Logging.Format, config.Logging.Verbosity = c.format, logs.VerbosityLevel(c.verbosity)
		if n.self, err = readSelf(config); err != nil {
			t.Fatal(err)
		}
		log = n.logging(log, c.flagged)
		log.Debug("detail")
		log.Info("news")
		n.setVerbosity(6)
		log.Debug("asked for")
		n.setVerbosity(0)
		log.Debug("not any more")
	}
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(`"?time"?[=:][^ ,]*[ ,]`).ReplaceAllString(string(out), "")
	want := `{"level":"DEBUG","msg":"detail"}
{"level":"INFO","msg":"news"}
{"level":"DEBUG","msg":"asked for"}
level=INFO msg=news
level=DEBUG msg="asked for"
level=INFO msg=news
level=DEBUG msg="asked for"
`
	if got != want {
		t.Errorf("it says\n%s\nwant\n%s", got, want)
	}
	for _, c := range []kubelet.KubeletConfiguration{{OOMScoreAdj: ptr.To[int32](2000)}, {MaxOpenFiles: -1}, {Logging: logs.LoggingConfiguration{Format: "xml"}}} {
		if _, err := readSelf(&c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
