package early

const (
	sysRead       = 0
	sysClose      = 3
	sysExecve     = 59
	sysGeteuid    = 107
	sysStatfs     = 137
	sysOpenat     = 257
	sysNewfstatat = 262
	sysReadlinkat = 267
)
