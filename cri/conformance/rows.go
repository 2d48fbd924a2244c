package conformance

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A row is a verb ("RunPodSandbox") or a field ("Mount.readonly") of the API.
// docs/cri.md has a line for each, which names the tests that show it.

// support says of rows what is not simply "works", see its first lines.
//
//go:embed support.txt
var support string

// verdicts are the words that a line of support.txt may begin with.
var verdicts = []string{"works", "needs", "refused", "ignored", "not yet", "never set"}

// readSupport returns what support.txt says of rows, and the tests outside of
// this suite that it names for rows ("cri/server TestX").
func readSupport() (says map[string]string, tests map[string][]string, err error) {
	says, tests = map[string]string{}, map[string][]string{}
	for line := range strings.Lines(support) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		names, text, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, nil, fmt.Errorf("support.txt: %q has no colon", line)
		}
		list, err := rows(names)
		if err != nil {
			return nil, nil, fmt.Errorf("support.txt: %w", err)
		}
		test, isTest := strings.CutPrefix(text, "test ")
		known := func(v string) bool { return strings.HasPrefix(text, v) }
		if !isTest && !slices.ContainsFunc(verdicts, known) {
			return nil, nil, fmt.Errorf("support.txt: %q begins with none of %q", text, verdicts)
		}
		for _, row := range list {
			switch {
			case isTest:
				tests[row] = append(tests[row], test)
			case says[row] != "":
				return nil, nil, fmt.Errorf("support.txt: %s has two verdicts", row)
			default:
				says[row] = text
			}
		}
	}
	return says, tests, nil
}

// rows expands a list such as "RunPodSandbox Mount.{image,readonly} PodIP.*".
func rows(list string) ([]string, error) {
	var out []string
	for _, item := range strings.Fields(list) {
		message, fields, isField := strings.Cut(item, ".")
		switch {
		case !isField:
			out = append(out, item)
		case fields == "*":
			for _, row := range allRows() {
				if strings.HasPrefix(row, message+".") {
					out = append(out, row)
				}
			}
		default:
			for _, field := range strings.Split(strings.Trim(fields, "{}"), ",") {
				out = append(out, message+"."+field)
			}
		}
	}
	for _, row := range out {
		if !slices.Contains(allRows(), row) {
			return nil, fmt.Errorf("the API has no %s", row)
		}
	}
	return out, nil
}

func apiFile() protoreflect.FileDescriptor {
	return (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile()
}

// verbOf is the verb that a request is of.
var verbOf = sync.OnceValue(func() map[protoreflect.Name]string {
	verbs := map[protoreflect.Name]string{}
	for i := range apiFile().Services().Len() {
		methods := apiFile().Services().Get(i).Methods()
		for j := range methods.Len() {
			verbs[methods.Get(j).Input().Name()] = string(methods.Get(j).Name())
		}
	}
	return verbs
})

// allRows lists the rows in the API's order, verbs first. What is Windows' and
// the boxes of plain numbers have none.
var allRows = sync.OnceValue(func() []string {
	var out []string
	for i := range apiFile().Services().Len() {
		methods := apiFile().Services().Get(i).Methods()
		for j := range methods.Len() {
			out = append(out, string(methods.Get(j).Name()))
		}
	}
	for i := range apiFile().Messages().Len() {
		m := apiFile().Messages().Get(i)
		if strings.HasPrefix(string(m.Name()), "Windows") || m.Name() == "Int64Value" || m.Name() == "UInt64Value" {
			continue
		}
		for j := range m.Fields().Len() {
			out = append(out, string(m.Name())+"."+string(m.Fields().Get(j).Name()))
		}
	}
	return out
})

// traffic is what a test has sent and got: the verbs that it used, and the
// fields that were set.
type traffic struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (t *traffic) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = map[string]bool{}
}

// missing lists those of the rows that did not occur.
func (t *traffic) missing(rows []string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(rows, func(row string) bool { return t.seen[row] })
}

func (t *traffic) saw(m proto.Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.walk(m.ProtoReflect())
}

func (t *traffic) walk(m protoreflect.Message) {
	name := m.Descriptor().Name()
	if verb, ok := verbOf()[name]; ok {
		t.seen[verb] = true
	}
	for i := range m.Descriptor().Fields().Len() {
		// Zero is as good a value of an enumeration as any.
		if f := m.Descriptor().Fields().Get(i); f.Enum() != nil && !f.IsList() {
			t.seen[string(name)+"."+string(f.Name())] = true
		}
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		t.seen[string(name)+"."+string(f.Name())] = true
		switch {
		case f.IsMap() || f.Message() == nil: // the API has no maps of messages
		case f.IsList():
			for i := range v.List().Len() {
				t.walk(v.List().Get(i).Message())
			}
		default:
			t.walk(v.Message())
		}
		return true
	})
}
