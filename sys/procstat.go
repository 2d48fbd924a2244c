package sys

import "strings"

// ParseStat takes the text of /proc/PID/stat apart: the name of the command, which
// may have anything in it, and the fields after that, from the state on, which
// proc_pid_stat(5) counts as the third. It returns none for what is no such text.
func ParseStat(text []byte) (name string, fields []string) {
	s := string(text)
	begin, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if begin < 0 || end < begin {
		return "", nil
	}
	return s[begin+1 : end], strings.Fields(s[end+1:])
}
