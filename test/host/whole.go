package host

import "os"

// wholeVariable asks for all of the suites that "make test" has a part of: what
// takes longer than it is worth for each change.
const wholeVariable = "PODSTEAD_TEST_WHOLE"

// Whole tells whether all of a suite is asked for (PODSTEAD_TEST_WHOLE is set),
// and not the part that each change is tested with.
func Whole() bool { return os.Getenv(wholeVariable) != "" }
