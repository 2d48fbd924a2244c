package ctl

import (
	"bytes"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEventFormats(t *testing.T) {
	event := &runtimeapi.ContainerEventResponse{ContainerId: "c1", ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT}
	for _, test := range []struct{ format, template, want string }{
		{"json", "", `"containerId": "c1"`},
		{"yaml", "", "containerId: c1\n"},
		{"go-template", "{{.containerId}} {{json .containerEventType}}", "c1 \"CONTAINER_STOPPED_EVENT\"\n"},
	} {
		var out bytes.Buffer
		print, err := eventPrinter(&out, test.format, test.template)
		if err == nil {
			err = print(event)
		}
		if err != nil || !strings.Contains(out.String(), test.want) {
			t.Errorf("%s: %q, %v", test.format, out.String(), err)
		}
	}
	for _, wrong := range [][2]string{{"table", ""}, {"json", "{{.}}"}, {"go-template", ""}, {"go-template", "{{"}} {
		if _, err := eventPrinter(&bytes.Buffer{}, wrong[0], wrong[1]); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestPercent(t *testing.T) {
	cpu := func(at int64, used uint64) *runtimeapi.CpuUsage {
		return &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: used}}
	}
	for _, test := range []struct {
		before, after *runtimeapi.CpuUsage
		want          string
	}{
		{cpu(1000, 100), cpu(2000, 600), "50.00"},
		{nil, cpu(2000, 600), "-"},
		{cpu(1000, 100), cpu(1000, 100), "-"},
	} {
		if got := percent(test.before, test.after); got != test.want {
			t.Errorf("%v to %v is %s, want %s", test.before, test.after, got, test.want)
		}
	}
}
