package stuck

import "golang.org/x/sys/unix"

func others() []call { return []call{{unix.SYS_FSTATAT, "newfstatat"}} }
