package server

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDeadlines: a call whose client sets no deadline has the kubelet's, and
// what may take for ever has none.
func TestDeadlines(t *testing.T) {
	for _, test := range []struct {
		req  proto.Message
		want time.Duration
	}{
		{&runtimeapi.StatusRequest{}, 2 * time.Minute},
		{&runtimeapi.CreateContainerRequest{}, 2 * time.Minute},
		{&runtimeapi.StartContainerRequest{}, 2 * time.Minute},
		{&runtimeapi.RunPodSandboxRequest{}, 4 * time.Minute},
		{&runtimeapi.StopPodSandboxRequest{}, 4 * time.Minute},
		{&runtimeapi.StopContainerRequest{Timeout: 30}, 2*time.Minute + 30*time.Second},
		{&runtimeapi.StopContainerRequest{Timeout: 1 << 62}, 365*24*time.Hour + 2*time.Minute},
		{&runtimeapi.ExecSyncRequest{Timeout: 10}, 2*time.Minute + 10*time.Second},
		{&runtimeapi.ExecSyncRequest{}, 0},
		{&runtimeapi.PullImageRequest{}, 0},
		{&runtimeapi.CheckpointContainerRequest{}, 0},
	} {
		if got := deadline(test.req); got != test.want {
			t.Errorf("%T %v: %v, want %v", test.req, test.req, got, test.want)
		}
	}
}
