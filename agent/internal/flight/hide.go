package flight

import "strings"

// Hide keeps texts, the values of Secrets, out of what is recorded from now on:
// an error may quote a command line that has one.
func (r *Recorder) Hide(texts []string) {
	// What is shorter would be found everywhere, and is no secret.
	const shortest = 4
	var pairs []string
	for _, t := range texts {
		if t = strings.TrimSpace(t); len(t) >= shortest {
			pairs = append(pairs, t, "…")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hidden = nil
	if len(pairs) > 0 {
		r.hidden = strings.NewReplacer(pairs...)
	}
}

// hide returns err with a text in which nothing is that is to be hidden.
func (r *Recorder) hide(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil || r.hidden == nil {
		return err
	}
	text := r.hidden.Replace(err.Error())
	if text == err.Error() {
		return err
	}
	return &blotted{text, err}
}

// blotted is an error, its class and all, with another text.
type blotted struct {
	text string
	err  error
}

func (e *blotted) Error() string { return e.text }
func (e *blotted) Unwrap() error { return e.err }
