package kubeletapi

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// queryTime is how long a query of the journal may take, queriesAtOnce how many
	// there may be.
	queryTime     = 30 * time.Second
	queriesAtOnce = 4

	mostServices  = 4
	mostTailLines = 100000
	longestQuery  = 256
)

// nodeLogs serves what is below LogDir, and, if queries are let in, answers
// /logs/?query=SERVICE from the journal or from the files where a service of that
// name would have its log (KEP-2258).
func (s *Server) nodeLogs() http.Handler {
	files := http.StripPrefix("/logs/", http.FileServer(logDir(s.LogDir)))
	if !s.SystemLogQuery {
		return files
	}
	free := make(chan struct{}, queriesAtOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, err := parseLogQuery(r.URL.Query())
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		case q == nil:
			files.ServeHTTP(w, r)
			return
		case r.URL.Path != "/logs/":
			http.Error(w, "path not allowed in query mode", http.StatusNotAcceptable)
			return
		}
		if err := q.check(); err != nil {
			http.Error(w, err.Error(), http.StatusNotAcceptable)
			return
		}
		if q.file != "" {
			one := r.Clone(r.Context())
			one.URL = &url.URL{Path: "/logs/" + strings.TrimLeft(strings.ReplaceAll(q.file, `\`, "/"), "/")}
			files.ServeHTTP(w, one)
			return
		}
		select {
		case free <- struct{}{}:
			defer func() { <-free }()
			s.answerQuery(w, r, q)
		default:
			http.Error(w, "other queries are under way, try again later", http.StatusTooManyRequests)
		}
	})
}

// logQuery is what somebody wants of the node's logs.
type logQuery struct {
	services     []string
	file         string
	files        int
	since, until time.Time
	tailLines    string // numbers, as they were given
	boot         string
	pattern      string
}

// parseLogQuery reads the parameters; nil if there are none of a query.
func parseLogQuery(v url.Values) (*logQuery, error) {
	q := &logQuery{tailLines: v.Get("tailLines"), boot: v.Get("boot"), pattern: v.Get("pattern")}
	for _, name := range v["query"] {
		switch {
		case strings.ContainsAny(name, `/\`):
			q.file = name
			q.files++
		case strings.TrimSpace(name) != "":
			q.services = append(q.services, name)
		}
	}
	if v.Has("query") && q.files == 0 && len(q.services) == 0 {
		return nil, errors.New("query: it is empty")
	}
	for key, to := range map[string]*time.Time{"sinceTime": &q.since, "untilTime": &q.until} {
		if text := v.Get(key); text != "" {
			at, err := time.Parse(time.RFC3339, text)
			if err != nil {
				return nil, fmt.Errorf("%s: %q is no time of RFC 3339", key, text)
			}
			*to = at
		}
	}
	for key, text := range map[string]string{"tailLines": q.tailLines, "boot": q.boot} {
		if _, err := strconv.Atoi(text); text != "" && err != nil {
			return nil, fmt.Errorf("%s: %q is no number", key, text)
		}
	}
	if q.files == 0 && len(q.services) == 0 && !q.selects() {
		return nil, nil
	}
	return q, nil
}

// selects tells whether not all of a log is wanted.
func (q *logQuery) selects() bool {
	return !q.since.IsZero() || !q.until.IsZero() || q.tailLines != "" || q.boot != "" || q.pattern != ""
}

// serviceName has nothing that could be an option, a path or a pattern.
func serviceName(s string) bool {
	return len(s) <= longestQuery && !strings.HasPrefix(s, "-") && strings.Trim(s, ".") != "" &&
		!strings.ContainsFunc(s, func(r rune) bool {
			letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
			return !letter && !strings.ContainsRune("-_@.:", r)
		})
}

func (q *logQuery) check() error {
	switch {
	case q.files == 0 && len(q.services) == 0:
		return errors.New("query: it is missing, and there are others of its options")
	case q.files > 0 && len(q.services) > 0:
		return errors.New("query: files and services cannot be asked for at once")
	case q.files > 1:
		return errors.New("query: only one file can be asked for")
	case q.files > 0 && q.selects():
		return errors.New("query: a file can only be had as a whole")
	case len(q.services) > mostServices:
		return fmt.Errorf("query: more than %d services", mostServices)
	case !q.since.IsZero() && !q.until.IsZero() && q.until.Before(q.since):
		return errors.New("untilTime: it is before sinceTime")
	case strings.ContainsRune(q.pattern, 0):
		return errors.New("pattern: there is a zero in it")
	}
	for _, s := range q.services {
		if !serviceName(s) {
			return fmt.Errorf("query: %.*q is no name of a service", longestQuery, s)
		}
	}
	if n, err := strconv.Atoi(q.tailLines); err == nil && (n < 0 || n > mostTailLines) {
		return fmt.Errorf("tailLines: %d is not between 0 and %d", n, mostTailLines)
	}
	if n, err := strconv.Atoi(q.boot); err == nil && n > 0 {
		return fmt.Errorf("boot: %d is more than 0", n)
	}
	if _, err := syntax.Parse(q.pattern, syntax.Perl); err != nil {
		return fmt.Errorf("pattern: %w", err)
	}
	return nil
}

// arguments are journalctl's. None is an option by what is in a parameter.
func (q *logQuery) arguments(services []string) []string {
	args := []string{"--utc", "--no-pager", "--output=short-precise"}
	const layout = "2006-01-02 15:04:05 UTC"
	if !q.since.IsZero() {
		args = append(args, "--since="+q.since.UTC().Format(layout))
	}
	if !q.until.IsZero() {
		args = append(args, "--until="+q.until.UTC().Format(layout))
	}
	if q.tailLines != "" {
		args = append(args, "--lines="+q.tailLines)
	}
	for _, s := range services {
		args = append(args, "--unit="+s)
	}
	if q.pattern != "" {
		args = append(args, "--grep="+q.pattern)
	}
	if q.boot != "" {
		args = append(args, "--boot="+q.boot)
	}
	return args
}

// answerQuery writes what the journal and files have. What goes wrong then is
// told in what is written, as by the kubelet.
func (s *Server) answerQuery(w http.ResponseWriter, r *http.Request, q *logQuery) {
	ctx, cancel := context.WithTimeout(r.Context(), queryTime)
	defer cancel()
	w.Header().Set("Content-Type", "text/plain;charset=UTF-8")
	var out io.Writer = w
	if gzipped.MatchString(r.Header.Get("Accept-Encoding")) {
		w.Header().Set("Content-Encoding", "gzip")
		gz, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
		defer gz.Close()
		out = gz
	}
	var journal, files []string
	known := s.journalUnits(ctx)
	for _, name := range q.services {
		if slices.Contains(known, name) || slices.Contains(known, name+".service") {
			journal = append(journal, name)
		} else {
			files = append(files, name)
		}
	}
	if len(journal) > 0 {
		cmd := s.journalctl(ctx, q.arguments(journal)...)
		cmd.Stdout, cmd.Stderr = out, out
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && (ctx.Err() != nil || !errors.As(err, &exit)) {
			fmt.Fprintf(out, "\nerror: journal output not available: %v\n", errors.Join(ctx.Err(), err))
		}
	}
	if len(files) > 0 && q.selects() {
		fmt.Fprintf(out, "\noptions present and query resolved to log files for %v\ntry without specifying options\n", files)
		return
	}
	for _, name := range files {
		if err := s.copyServiceLog(ctx, out, name); err != nil {
			fmt.Fprintf(out, "\nlog of %s: %v\n", name, err)
		}
	}
}

// gzipped is an encoding that who asks accepts.
var gzipped = regexp.MustCompile(`(^|[ ,])gzip($|[ ,;])`)

func (s *Server) journalctl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "journalctl", args...)
	cmd.WaitDelay = time.Second
	return cmd
}

// journalUnits are those of which the journal has anything; none if there is no
// journal.
func (s *Server) journalUnits(ctx context.Context) []string {
	out, err := s.journalctl(ctx, "--field=_SYSTEMD_UNIT").Output()
	if err != nil {
		return nil
	}
	return strings.Fields(string(out))
}

// copyServiceLog writes the first file that a service of a name may log to.
func (s *Server) copyServiceLog(ctx context.Context, w io.Writer, name string) error {
	for _, path := range []string{name, name + ".log", name + "/" + name + ".log"} {
		f, err := logDir(s.LogDir).open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || st.IsDir() {
			continue
		}
		stop := context.AfterFunc(ctx, func() { _ = f.Close() })
		defer stop()
		_, err = io.Copy(w, f)
		return errors.Join(err, ctx.Err())
	}
	return errors.New("log not found")
}

// logDir shows the files and directories below a directory. Links are followed as
// far as they stay in it, whoever has put them there.
type logDir string

func (d logDir) Open(name string) (http.File, error) { return d.open(name) }

func (d logDir) open(name string) (*os.File, error) {
	top, err := filepath.EvalSymlinks(string(d))
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	clean := filepath.Join("/", name)
	// Links to absolute paths lead out in the eyes of a Root: they are followed
	// before, and what they have led to is opened only if that is still so inside.
	real, err := filepath.EvalSymlinks(filepath.Join(top, clean))
	if err != nil {
		return nil, fs.ErrNotExist
	}
	inside, err := filepath.Rel(top, real)
	if err != nil || !filepath.IsLocal(inside) {
		return nil, fs.ErrPermission
	}
	f, err := root.OpenFile(inside, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.IsDir() && !st.Mode().IsRegular() {
		return nil, errors.Join(fs.ErrPermission, f.Close())
	}
	return f, nil
}
