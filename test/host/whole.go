package host

import "os"

// wholeVariable asks for all of the suites that "make test" has a part of: what
// takes longer than it is worth for each change.
const wholeVariable = "PODSTEAD_TEST_WHOLE"

// Whole tells whether all of a suite is asked for (PODSTEAD_TEST_WHOLE is set),
// and not the part that each change is tested with.
func Whole() bool { return os.Getenv(wholeVariable) != "" }

// emulatedVariable is set in the virtual machine of test/vm/run where its
// processors are emulated.
const emulatedVariable = "PODSTEAD_TEST_EMULATED"

// Emulated tells whether processors are.
func Emulated() bool { return os.Getenv(emulatedVariable) != "" }

// Rounds is how often a test does again what has chance in it: n times, a few
// times only where processors are emulated, which is not where such tests find
// what there is to find.
func Rounds(n int) int {
	if Emulated() {
		return max(1, n/8)
	}
	return n
}
