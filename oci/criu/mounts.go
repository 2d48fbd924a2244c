package criu

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// mount is a line of /proc/PID/mountinfo.
type mount struct {
	id, parent int
	dev        string // "8:1"
	root       string // what of the file system is mounted
	point      string // as the process sees it
	options    []string
	typ        string
	source     string
}

func readMounts(pid int) ([]mount, error) {
	file := fmt.Sprintf("/proc/%d/mountinfo", pid)
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	mounts, err := parseMounts(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return mounts, nil
}

func parseMounts(table string) ([]mount, error) {
	var mounts []mount
	for line := range strings.Lines(table) {
		own, super, ok := strings.Cut(line, " - ")
		f, s := strings.Fields(own), strings.Fields(super)
		if !ok || len(f) < 6 || len(s) < 2 {
			return nil, fmt.Errorf("malformed line %q", line)
		}
		m := mount{dev: f[2], root: unescape(f[3]), point: unescape(f[4]), options: strings.Split(f[5], ","), typ: s[0], source: unescape(s[1])}
		var err error
		if m.id, err = strconv.Atoi(f[0]); err == nil {
			m.parent, err = strconv.Atoi(f[1])
		}
		if err != nil {
			return nil, fmt.Errorf("malformed line %q", line)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// unescape undoes the kernel's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}
