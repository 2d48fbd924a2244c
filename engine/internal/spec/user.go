package spec

import (
	"bytes"
	"math"
	"path"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// MaxAccountFile is how much of an image's /etc/passwd or /etc/group is read:
// a larger file is the image's error, not ours to parse (CVE-2026-47262).
const MaxAccountFile = 1 << 20

// maxAccountLines bounds the entries of such a file.
const maxAccountLines = 16384

// User is who a process runs as.
type User struct {
	UID, GID uint32
	// Groups are the supplementary groups; the primary one is among them, so
	// that a file mode that denies its group still does (CVE-2023-25173).
	Groups []uint32
	Home   string
}

// Accounts are an image's parsed /etc/passwd and /etc/group.
type Accounts struct {
	Users  []Account
	Groups []Group
}

// Account is a line of /etc/passwd.
type Account struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Group is a line of /etc/group.
type Group struct {
	Name    string
	GID     uint32
	Members []string
}

// ParseAccounts reads what is well-formed of the two files and skips the rest,
// as every libc does.
func ParseAccounts(passwd, group []byte) Accounts {
	var a Accounts
	for _, f := range accountLines(passwd, 6) {
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 == nil && err2 == nil {
			a.Users = append(a.Users, Account{Name: f[0], UID: uid, GID: gid, Home: f[5]})
		}
	}
	for _, f := range accountLines(group, 4) {
		gid, err := parseID(f[2])
		if err != nil {
			continue
		}
		g := Group{Name: f[0], GID: gid}
		if f[3] != "" {
			g.Members = strings.Split(f[3], ",")
		}
		a.Groups = append(a.Groups, g)
	}
	return a
}

func accountLines(b []byte, minFields int) [][]string {
	var out [][]string
	for line := range bytes.Lines(b) {
		fields := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(fields) < minFields || fields[0] == "" || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if out = append(out, fields); len(out) == maxAccountLines {
			break
		}
	}
	return out
}

// parseID reads a uid or gid. IDs above 2³¹−1 are refused: some kernel and
// user-space interfaces take them for negative ones (CVE-2024-40635).
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, err
	}
	if n > math.MaxInt32 {
		return 0, strconv.ErrRange
	}
	return uint32(n), nil
}

// isNumber tells whether s is meant as an ID, in range or not: such a string is
// never looked up as a name, lest an image's passwd file give the name "1000"
// another uid (CVE-2016-3697).
func isNumber(s string) bool {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "+"), "-")
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// ResolveUser finds out who a container's first process runs as: the request's
// run_as_user or run_as_username, else the image's USER, else root.
func ResolveUser(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, a Accounts) (User, error) {
	name, group := sc.GetRunAsUsername(), ""
	switch {
	case sc.GetRunAsUser() != nil:
		name = strconv.FormatInt(sc.RunAsUser.Value, 10)
	case name == "" && sc.GetRunAsGroup() != nil:
		return User{}, invalid("run_as_group is set without run_as_user or run_as_username")
	case name == "":
		name, group, _ = strings.Cut(imageUser, ":")
	}
	if sc.GetRunAsGroup() != nil {
		group = strconv.FormatInt(sc.RunAsGroup.Value, 10)
	}
	u, account, err := a.user(name)
	if err != nil {
		return User{}, err
	}
	if group != "" {
		if u.GID, err = a.group(group); err != nil {
			return User{}, err
		}
	}
	return u, a.supplement(&u, account, sc)
}

// user finds a user by number or name; an empty one is root. account is its
// name in the image's files, "" if it has none there.
func (a Accounts) user(name string) (u User, account string, err error) {
	u.Home = "/"
	if name == "" {
		name = "0"
	}
	if isNumber(name) {
		if u.UID, err = parseID(name); err != nil {
			return u, "", invalid("user %q is not in the range 0 to %d", name, math.MaxInt32)
		}
		for _, e := range a.Users {
			if e.UID == u.UID {
				u.GID, u.Home = e.GID, home(e.Home)
				return u, e.Name, nil
			}
		}
		return u, "", nil
	}
	for _, e := range a.Users {
		if e.Name == name {
			return User{UID: e.UID, GID: e.GID, Home: home(e.Home)}, e.Name, nil
		}
	}
	return u, "", invalid("user %q is not in the image's /etc/passwd", name)
}

func (a Accounts) group(name string) (uint32, error) {
	if isNumber(name) {
		gid, err := parseID(name)
		if err != nil {
			return 0, invalid("group %q is not in the range 0 to %d", name, math.MaxInt32)
		}
		return gid, nil
	}
	for _, g := range a.Groups {
		if g.Name == name {
			return g.GID, nil
		}
	}
	return 0, invalid("group %q is not in the image's /etc/group", name)
}

// supplement fills u.Groups: the primary group, the image's groups of the user
// unless the policy is Strict, and the request's.
func (a Accounts) supplement(u *User, account string, sc *runtimeapi.LinuxContainerSecurityContext) error {
	seen := map[uint32]bool{}
	add := func(gid uint32) {
		if !seen[gid] {
			seen[gid] = true
			u.Groups = append(u.Groups, gid)
		}
	}
	add(u.GID)
	switch sc.GetSupplementalGroupsPolicy() {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		for _, g := range a.Groups {
			for _, m := range g.Members {
				if account != "" && m == account {
					add(g.GID)
				}
			}
		}
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return invalid("supplemental_groups_policy %v is unknown", sc.GetSupplementalGroupsPolicy())
	}
	for _, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > math.MaxInt32 {
			return invalid("supplemental_groups: %d is not in the range 0 to %d", g, math.MaxInt32)
		}
		add(uint32(g))
	}
	return nil
}

// home makes a directory from an image's passwd file fit for $HOME: a value
// with control characters could smuggle lines into files that are written from
// it (CVE-2022-4318), a relative one means nothing.
func home(dir string) string {
	if !path.IsAbs(dir) || strings.ContainsFunc(dir, isControl) {
		return "/"
	}
	return dir
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func invalid(format string, args ...any) error {
	return cri.Errorf(codes.InvalidArgument, format, args...)
}

// SetImageUser tells of an image as whom it wants to run. The kubelet compares a
// number with runAsNonRoot and cannot judge a name.
func SetImageUser(to *runtimeapi.Image, user string) {
	user, _, _ = strings.Cut(user, ":")
	switch n, err := strconv.ParseInt(user, 10, 64); {
	case user == "":
		to.Uid = &runtimeapi.Int64Value{}
	case err == nil && n >= 0 && n <= math.MaxInt32:
		to.Uid = &runtimeapi.Int64Value{Value: n}
	default:
		to.Username = user
	}
}
