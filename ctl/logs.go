package ctl

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri/remote"
)

// logReader prints a container's log file, which is on this machine.
type logReader struct {
	tail       int // last lines; negative for all
	follow     bool
	timestamps bool
	since      time.Duration
}

func logsCommand(s *session) *cobra.Command {
	var l logReader
	cmd := &cobra.Command{
		Use: "logs CONTAINER", Short: "Print a container's log", Args: cobra.ExactArgs(1),
		RunE: s.runUnlimited(func(ctx context.Context, r *remote.Runtime, out io.Writer, args []string) error {
			status, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: args[0]})
			if err != nil {
				return err
			}
			path := status.GetStatus().GetLogPath()
			if path == "" {
				return fmt.Errorf("container %s has no log file", args[0])
			}
			running := func() bool {
				status, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: args[0]})
				return err == nil && status.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
			}
			return l.print(ctx, path, out, os.Stderr, running)
		}),
	}
	f := cmd.Flags()
	f.IntVar(&l.tail, "tail", -1, "only the last `NUMBER` of lines")
	f.BoolVarP(&l.follow, "follow", "f", false, "go on with what is written from now on")
	f.BoolVarP(&l.timestamps, "timestamps", "t", false, "begin each line with its time")
	f.DurationVar(&l.since, "since", 0, "only what is younger than this")
	return cmd
}

// pollInterval is how often a followed file is looked at.
const pollInterval = 100 * time.Millisecond

// print copies the log to the outputs. When it follows, it ends with ctx, or
// after the last line of a container that does not run any more.
func (l *logReader) print(ctx context.Context, path string, stdout, stderr io.Writer, running func() bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	if l.tail >= 0 {
		if err := seekTail(file, l.tail); err != nil {
			return err
		}
	}
	lines := bufio.NewReader(file)
	var partial []byte // the beginning of a line that is being written
	last := false
	for {
		line, err := lines.ReadBytes('\n')
		partial = append(partial, line...)
		if err == nil {
			if err := l.printLine(partial, stdout, stderr); err != nil {
				return err
			}
			partial = partial[:0]
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if !l.follow || last {
			return nil
		}
		if next, err := rotated(file, path); err != nil {
			return err
		} else if next != nil {
			file.Close()
			file, partial = next, partial[:0]
			lines.Reset(file)
			continue
		}
		// What was written before the end was seen is read in one more turn.
		last = !running()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollInterval):
		}
	}
}

// rotated opens the file that has taken the place of one, nil if none has.
func rotated(file *os.File, path string) (*os.File, error) {
	now, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it will be there again
	}
	if err != nil {
		return nil, err
	}
	was, err := file.Stat()
	if err != nil || os.SameFile(was, now) {
		return nil, err
	}
	return os.Open(path)
}

// printLine prints one line of a CRI log: "TIME STREAM TAG TEXT".
func (l *logReader) printLine(line []byte, stdout, stderr io.Writer) error {
	fields := bytes.SplitN(line, []byte(" "), 4)
	if len(fields) < 4 {
		return fmt.Errorf("log line %q is not of the CRI's format", line)
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return fmt.Errorf("log line %q: %w", line, err)
	}
	if l.since > 0 && time.Since(at) > l.since {
		return nil
	}
	out, text := stdout, fields[3]
	if string(fields[1]) == "stderr" {
		out = stderr
	}
	if fields[2][0] == 'P' {
		text = bytes.TrimSuffix(text, []byte("\n"))
	}
	if l.timestamps {
		text = append(append(bytes.Clone(fields[0]), ' '), text...)
	}
	_, err = out.Write(text)
	return err
}

// seekTail moves to where the last n lines of a file begin.
func seekTail(file *os.File, n int) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	found := 0
	for end := info.Size(); end > 0; {
		start := max(0, end-block)
		part := buf[:end-start]
		if _, err := file.ReadAt(part, start); err != nil {
			return err
		}
		for i := len(part) - 1; i >= 0; i-- {
			if part[i] != '\n' || start+int64(i) == info.Size()-1 && n > 0 {
				continue
			}
			if found++; found >= n {
				_, err := file.Seek(start+int64(i)+1, io.SeekStart)
				return err
			}
		}
		end = start
	}
	return nil
}
