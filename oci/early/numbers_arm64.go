package early

const (
	sysStatfs     = 43
	sysOpenat     = 56
	sysClose      = 57
	sysRead       = 63
	sysReadlinkat = 78
	sysNewfstatat = 79
	sysGeteuid    = 175
	sysExecve     = 221
)
