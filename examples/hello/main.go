// Command hello is the web server of examples/hello.yaml: one program in two
// roles, so that the pod shows what containers of one pod share.
//
//	hello clock   writes the time into /shared/time once a second and answers on localhost:8081
//	hello web     answers on :8080 with what it finds in /shared and at localhost:8081
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	timeFile  = "/shared/time"
	clockAddr = "127.0.0.1:8081"
	webAddr   = ":8080"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	role := "web"
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	var err error
	switch role {
	case "clock":
		err = clock(ctx)
	case "web":
		err = serve(ctx, webAddr, webHandler())
	default:
		err = fmt.Errorf("role %q is not clock or web", role)
	}
	if err != nil {
		log.Fatalf("hello %s: %v", role, err)
	}
	log.Printf("%s: good bye", role)
}

func clock(ctx context.Context) error {
	start := time.Now()
	go tick(ctx)
	return serve(ctx, clockAddr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "up for %s", time.Since(start).Round(time.Second))
	}))
}

func tick(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		now := time.Now().Format(time.TimeOnly)
		if err := os.WriteFile(timeFile, []byte(now), 0o644); err != nil {
			log.Printf("clock: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func webHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(timeFile); err != nil {
			http.Error(w, "the clock has not ticked yet", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		log.Printf("web: %s %s from %s", r.Method, r.URL.Path, r.RemoteAddr)
		host, _ := os.Hostname()
		fmt.Fprintf(w, "Hello from pod %s.\n", host)
		fmt.Fprintf(w, "The other container wrote into our emptyDir: %s\n", readTime())
		fmt.Fprintf(w, "The other container says on our localhost: %s\n", askClock(r.Context()))
	})
	return mux
}

func readTime() string {
	b, err := os.ReadFile(timeFile)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func askClock(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+clockAddr, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func serve(ctx context.Context, addr string, h http.Handler) error {
	srv := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		srv.Shutdown(stop)
	}()
	log.Printf("listening on %s", addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
