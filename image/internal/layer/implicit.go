package layer

import (
	"os"
)

// FixImplicit is being written.
func FixImplicit(root *os.File, lower []*os.File, implicit []string) error {
	return nil
}
