package network

import (
	"context"
	"testing"
)

func TestPodsReachEachOtherAndTheHost(t *testing.T) {
	lab := newLab(t)
	n := newNetwork(t, newConfig(t, "podtest0"))
	a, b := testPod(t, "a"), testPod(t, "b")
	ipA, ipB := setup(t, n, a), setup(t, n, b)
	serve(t, b.Netns, "tcp", ":80", "b")
	serve(t, b.Netns, "udp", ":53", "b")
	serve(t, a.Netns, "tcp", "127.0.0.1:81", "a")
	serve(t, "", "tcp", ":8000", "host")
	serve(t, lab.outside, "tcp", ":8000", "outside")
	gateway := n.builtin.subnet.Addr().Next().String()

	expect(t, a.Netns, "tcp", ipB.String()+":80", "b sees "+ipA.String())
	expect(t, a.Netns, "udp", ipB.String()+":53", "b sees "+ipA.String())
	expect(t, a.Netns, "tcp", "127.0.0.1:81", "a sees 127.0.0.1")
	expect(t, "", "tcp", ipB.String()+":80", "b sees "+gateway)
	expect(t, a.Netns, "tcp", gateway+":8000", "host sees "+ipA.String())
	expect(t, a.Netns, "tcp", hostIP.String()+":8000", "host sees "+ipA.String())
	expect(t, a.Netns, "tcp", outsideIP.String()+":8000", "outside sees "+hostIP.String())

	teardown(t, n, b)
	if _, err := n.Setup(context.Background(), Pod{ID: "x", Netns: "/nonexistent"}); err == nil {
		t.Error("Setup with a namespace that is not there succeeded")
	}
}

func BenchmarkSetupTeardown(b *testing.B) {
	needRoot(b)
	n := newNetwork(b, newConfig(b, "podbench0"))
	setup(b, n, testPod(b, "first"))
	for b.Loop() {
		b.StopTimer()
		pod := testPod(b, "pod")
		b.StartTimer()
		setup(b, n, pod)
		teardown(b, n, pod)
	}
}
