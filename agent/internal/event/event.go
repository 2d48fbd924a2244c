// Package event remembers what happened to the pods and to the node, a bounded number of events
// each, equal ones counted. It lives in memory only; describing a pod and the
// watch of the API read it.
package event

import (
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// perPod bounds the events of one pod, and maxPods the pods that have any: those
// of pods long gone make room.
const (
	perPod  = 64
	maxPods = 1024
)

// Log holds events. Safe for concurrent use.
type Log struct {
	node   string
	notify func(namespace, name string, e corev1.Event)

	mu   sync.Mutex
	pods map[string][]corev1.Event // by namespace/name; the node's by ofNode
	seq  int
}

// NewLog returns an empty log; notify, if not nil, is told of every event.
func NewLog(node string, notify func(namespace, name string, e corev1.Event)) *Log {
	return &Log{node: node, notify: notify, pods: map[string][]corev1.Event{}}
}

// Add records an event of a pod; container may be "".
func (l *Log) Add(pod *corev1.Pod, container, kind, reason, message string) {
	e := l.add(corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		FieldPath: fieldPath(pod, container)}, kind, reason, message)
	if l.notify != nil {
		l.notify(pod.Namespace, pod.Name, e)
	}
}

// ofNode is where the node's events are; no namespace is called that.
const ofNode = "Node/"

// AddNode records an event of the node, as the kubelet refers to it.
func (l *Log) AddNode(kind, reason, message string) {
	l.add(corev1.ObjectReference{Kind: "Node", Name: l.node, UID: types.UID(l.node)}, kind, reason, message)
}

// OfNode returns the node's events, oldest first.
func (l *Log) OfNode() []corev1.Event { return l.of(ofNode) }

func (l *Log) add(of corev1.ObjectReference, kind, reason, message string) corev1.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := metav1.NewTime(time.Now())
	key, namespace := of.Namespace+"/"+of.Name, of.Namespace
	if of.Kind == "Node" {
		key, namespace = ofNode, metav1.NamespaceDefault
	}
	list := l.pods[key]
	for i := range list {
		e := &list[i]
		if e.Reason == reason && e.Message == message && e.InvolvedObject.FieldPath == of.FieldPath && e.InvolvedObject.UID == of.UID {
			e.Count++
			e.LastTimestamp = now
			same := *e
			// The newest event stands last.
			l.pods[key] = append(append(list[:i:i], list[i+1:]...), same)
			return same
		}
	}
	if list == nil && len(l.pods) >= maxPods {
		l.evict()
	}
	l.seq++
	e := corev1.Event{
		TypeMeta:       metav1.TypeMeta{Kind: "Event", APIVersion: "v1"},
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", of.Name, l.seq), Namespace: namespace},
		InvolvedObject: of, Type: kind, Reason: reason, Message: message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "podstead", Host: l.node},
	}
	list = append(list, e)
	l.pods[key] = list[max(0, len(list)-perPod):]
	return e
}

func fieldPath(pod *corev1.Pod, container string) string {
	if container == "" {
		return ""
	}
	for _, c := range pod.Spec.InitContainers {
		if c.Name == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if c.Name == container {
			return "spec.ephemeralContainers{" + container + "}"
		}
	}
	return "spec.containers{" + container + "}"
}

// Of returns a pod's events, oldest first.
func (l *Log) Of(namespace, name string) []corev1.Event { return l.of(namespace + "/" + name) }

func (l *Log) of(key string) []corev1.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]corev1.Event(nil), l.pods[key]...)
}

// evict makes room by dropping the pod whose last event is the oldest, or the node.
func (l *Log) evict() {
	oldest, at := "", time.Time{}
	for key, list := range l.pods {
		if t := list[len(list)-1].LastTimestamp.Time; oldest == "" || t.Before(at) {
			oldest, at = key, t
		}
	}
	delete(l.pods, oldest)
}
