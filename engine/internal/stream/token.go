package stream

import (
	"crypto/rand"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"podstead/cri"
)

// A URL is good for tokenLife; maxTokens may wait for their clients.
const (
	tokenLife = time.Minute
	maxTokens = 1000
)

// tokens are what makes URLs hard to guess. The zero value is ready.
type tokens struct {
	mu      sync.Mutex
	waiting map[string]waiting
	oldest  []string // in the order of their ends; some may be taken already
}

type waiting struct {
	request any
	until   time.Time
}

// give makes a token, of 128 random bits, for a request.
func (t *tokens) give(request any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if len(t.waiting) >= maxTokens {
		return "", cri.Errorf(codes.ResourceExhausted, "%d streams wait for their clients already", maxTokens)
	}
	if t.waiting == nil {
		t.waiting = map[string]waiting{}
	}
	token := rand.Text()
	t.waiting[token] = waiting{request, time.Now().Add(tokenLife)}
	t.oldest = append(t.oldest, token)
	return token, nil
}

// take ends a token and returns its request.
func (t *tokens) take(token string) (request any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	w, ok := t.waiting[token]
	delete(t.waiting, token)
	return w.request, ok
}

func (t *tokens) expire() {
	now := time.Now()
	for len(t.oldest) > 0 {
		w, ok := t.waiting[t.oldest[0]]
		if ok && now.Before(w.until) {
			return
		}
		delete(t.waiting, t.oldest[0])
		t.oldest = t.oldest[1:]
	}
}
