package stream

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Size is a terminal's, in characters.
type Size struct {
	Width, Height uint16
}

// Resize calls resize for every size that the client tells, until the returned
// function is called or the client's connection ends.
func (s Streams) Resize(resize func(Size)) (stop func()) {
	if s.sizes == nil {
		return func() {}
	}
	var mu sync.Mutex
	stopped := false
	go func() { // ends with the connection, which is closed after the work
		sizes := json.NewDecoder(s.sizes)
		for {
			var size Size
			if sizes.Decode(&size) != nil {
				io.Copy(io.Discard, s.sizes)
				return
			}
			mu.Lock()
			if !stopped {
				resize(size)
			}
			mu.Unlock()
		}
	}()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
	}
}

// options are what a client was promised.
type options struct {
	in, out, err, tty bool
}

// channel is a connection of a command.
type channel struct {
	Streams
	status io.WriteCloser
	json   bool // the status is an object, else a text after a failure
	close  func()
}

// command runs with a client's streams and tells it the result.
func (s *Server) command(w http.ResponseWriter, r *http.Request, o options, run func(Streams) (int, error)) {
	open := s.openSPDY
	if wsstream.IsWebSocketRequest(r) {
		open = s.openWebSocket
	}
	c, err := open(w, r, o)
	if err != nil {
		s.log.Debug("a stream's client failed", "error", err)
		return
	}
	defer c.close()
	c.TTY, c.Gone = o.tty, r.Context().Value(connKey{}).(*conn).present.Done()
	code, err := run(c.Streams)
	if err != nil {
		s.log.Warn("a stream failed", "verb", r.URL.Path[:len(r.URL.Path)-len(r.PathValue("token"))], "error", err)
	}
	c.tell(code, err)
}

// result is a metav1.Status.
type result struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int32    `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func resultOf(code int, err error) result {
	switch {
	case err != nil:
		return result{
			Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
			Message: "Internal error occurred: " + err.Error(),
		}
	case code != 0:
		return result{
			Status: "Failure", Reason: "NonZeroExitCode",
			Message: fmt.Sprintf("command terminated with exit code %d", code),
			Details: &details{[]cause{{"ExitCode", strconv.Itoa(code)}}},
		}
	}
	return result{Status: "Success"}
}

// tell writes the result; a client that has gone does not hear it.
func (c *channel) tell(code int, err error) {
	st := resultOf(code, err)
	text := []byte(st.Message)
	if c.json {
		text, _ = json.Marshal(st)
	}
	if len(text) > 0 {
		c.status.Write(text)
	}
	c.status.Close()
}
