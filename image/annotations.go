package image

// Annotations are those of an image's manifest, attacker input as all of it.
// ErrNotFound if there is no image of that name.
func (s *Store) Annotations(name string) (map[string]string, error) {
	s.mu.Lock()
	e, err := s.lookup(name)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	manifest := e.Manifest
	s.mu.Unlock()
	b, err := s.readSmallBlob(manifest)
	if err != nil {
		return nil, err
	}
	d, err := parseDocument(b, manifest.MediaType)
	if err != nil {
		return nil, err
	}
	return d.Annotations, nil
}
