package launch

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions is what fstab-style options mean.
type mountOptions struct {
	bind, recursive bool
	// Attributes of the mount (MOUNT_ATTR_*); with attrRecurses of its submounts too.
	set, clear       uint64
	rset, rclear     uint64 // of the mount and all its submounts
	propagation      uint64 // MS_PRIVATE, …, 0 if not given
	propagateRecurse bool
	data             []string // options of the file system, "key" or "key=value"
	idmap, ridmap    bool
	copyUp, remount  bool
}

type attrOption struct{ set, clear uint64 }

const atime = unix.MOUNT_ATTR__ATIME

// attrOptions are the options that are attributes of a mount. Their recursive
// forms have an "r" in front.
var attrOptions = map[string]attrOption{
	"ro":            {set: unix.MOUNT_ATTR_RDONLY},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: atime},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: atime},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: atime},
	"atime":         {clear: atime},
	"norelatime":    {clear: atime},
	"nostrictatime": {clear: atime},
}

var propagationOptions = map[string]uint64{
	"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE,
}

// parseMountOptions sorts the options of a mount. What is not a mount's is
// taken for the file system's, which will refuse what it does not know.
func parseMountOptions(options []string) (o mountOptions) {
	for _, s := range options {
		if a, ok := attrOptions[s]; ok {
			o.set, o.clear = o.set&^a.clear|a.set, o.clear&^a.set|a.clear
			continue
		}
		if a, ok := attrOptions[strings.TrimPrefix(s, "r")]; ok && s[0] == 'r' {
			o.rset, o.rclear = o.rset&^a.clear|a.set, o.rclear&^a.set|a.clear
			continue
		}
		if p, ok := propagationOptions[s]; ok {
			o.propagation, o.propagateRecurse = p, false
			continue
		}
		if p, ok := propagationOptions[strings.TrimPrefix(s, "r")]; ok {
			o.propagation, o.propagateRecurse = p, true
			continue
		}
		switch s {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.recursive = true, true
		case "idmap":
			o.idmap = true
		case "ridmap":
			o.idmap, o.ridmap = true, true
		case "defaults", "async", "nomand", "nolazytime", "loud", "noiversion", "": // what is so anyway
		case "tmpcopyup":
			o.copyUp = true
		case "remount":
			o.remount = true
		default:
			o.data = append(o.data, s)
		}
	}
	return o
}

// all returns the attributes of a new mount, which has no submounts.
func (o *mountOptions) all() uint64 { return o.set&^o.rclear | o.rset }
