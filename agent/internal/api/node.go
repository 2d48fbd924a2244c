package api

import (
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (s *server) listNodes(w http.ResponseWriter, r *http.Request) error {
	return reply(w, corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, Items: []corev1.Node{*s.backend.Node(r.Context())}})
}

func (s *server) getNode(w http.ResponseWriter, r *http.Request) error {
	node := s.backend.Node(r.Context())
	if name := r.PathValue("name"); name != node.Name {
		return apierrors.NewNotFound(corev1.Resource("nodes"), name)
	}
	return reply(w, node)
}

func (s *server) nodeEvents(w http.ResponseWriter, r *http.Request) error {
	if name := r.PathValue("name"); name != s.backend.Version().Node {
		return apierrors.NewNotFound(corev1.Resource("nodes"), name)
	}
	return reply(w, corev1.EventList{TypeMeta: metav1.TypeMeta{Kind: "EventList", APIVersion: "v1"}, Items: s.backend.NodeEvents()})
}

func (s *server) summary(w http.ResponseWriter, r *http.Request) error {
	sum, err := s.backend.Summary(r.Context(), flag(r.URL.Query(), "only_cpu_and_memory"))
	if err != nil {
		return err
	}
	return reply(w, sum)
}

func (s *server) shutdown(w http.ResponseWriter, r *http.Request) error {
	if err := s.backend.Shutdown(r.Context(), flag(r.URL.Query(), "cancel")); err != nil {
		return err
	}
	return done(w)
}
