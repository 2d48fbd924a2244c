package lazyjson

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// sample has what specifications do not have.
type sample struct {
	specs.LinuxBlockIODevice
	Untagged string
	Time     time.Time         `json:"time"`
	Bytes    []byte            `json:"bytes"`
	Any      any               `json:"any"`
	Names    map[string]string `json:"names,omitempty"`
	Pointer  *int8             `json:"pointer"`
	Deep     []sample          `json:"deep"`
	Float    float64           `json:"float"`
	Array    [2]int            `json:"array"`
	Numbers  map[int]bool      `json:"numbers"`
	hidden   int
}

var inputs = []string{
	`{}`, ` { } `, ``, `null`, `[]`, `1`, `{"untagged":"a"}`, `{"Untagged":"a"}`, `{"major":1,"minor":-2}`, `{"Major":1}`,
	`{"time":"2026-01-02T03:04:05Z","bytes":"AAE=","any":{"a":[1,2.5,null]},"names":{"a":"b","a":"c"},"pointer":127,"float":1e3}`,
	`{"pointer":128}`, `{"pointer":1.0}`, `{"pointer":01}`, `{"pointer":-0}`, `{"pointer":null}`, `{"pointer":--1}`, `{"names":null}`,
	`{"names":{"a":null}}`, `{"names":{"a":1}}`, `{"deep":[]}`, `{"deep":[{},{"deep":[{"pointer":1}]},null]}`, `{"deep":[{},]}`, `{"deep":[`,
	`{"Untagged":"\u00e9\n\ud83d\ude00"}`, "{\"Untagged\":\"\xff\"}", "{\"Untagged\":\"\x01\"}", `{"Untagged":"\x"}`, `{"Untagged":"a`, `{"Untagged":"\`,
	`{"Untagged":"a","Untagged":null}`, `{"deep":[{"pointer":1}],"deep":[{}]}`, `{"array":[1]}`, `{"numbers":{"1":true}}`, `{"hidden":1}`,
	`{"unknown":{"a":[true,false,null,"x",-1.5e+3,{}]}}`, `{"unknown":01}`, `{"unknown":nul}`, `{"a":1}x`, `{"a":1} {}`, `{"a" 1}`, `{"a":1,}`, `{,}`,
	`{"time":null}`, `{"time":"x"}`, `{"major":"1"}`, `{"untagged":tru}`,
}

// TestUnmarshal compares with encoding/json, results and errors.
func TestUnmarshal(t *testing.T) {
	for _, in := range inputs {
		compare[sample](t, []byte(in))
		compare[specs.Spec](t, []byte(in))
	}
}

// TestSpecification reads what the runtime writes, without encoding/json.
func TestSpecification(t *testing.T) {
	b, err := os.ReadFile("testdata/config.json")
	if err != nil {
		t.Fatal(err)
	}
	compare[specs.Spec](t, b)
	var s specs.Spec
	r := reader{in: b, types: map[reflect.Type][]field{}}
	if !r.value(reflect.ValueOf(&s).Elem()) {
		t.Errorf("a plain specification is not read; stopped at %q", b[r.at:min(len(b), r.at+40)])
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, in := range inputs {
		f.Add([]byte(in))
	}
	// Not a whole specification: large inputs keep the fuzzer busy making them small.
	f.Add([]byte(`{"process":{"user":{"uid":1},"args":["a"]},"mounts":[{"destination":"/"}],"linux":{"resources":{"devices":[{"allow":true,"major":1}]}}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		compare[sample](t, in)
		compare[specs.Spec](t, in)
	})
}

func compare[T any](t *testing.T, in []byte) {
	t.Helper()
	var got, want T
	err, wantErr := Unmarshal(in, &got), json.Unmarshal(in, &want)
	if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
		t.Errorf("%s: error %v, encoding/json has %v", in, err, wantErr)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, encoding/json has %+v", in, got, want)
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	in, err := os.ReadFile("testdata/config.json")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var s specs.Spec
		if err := Unmarshal(in, &s); err != nil {
			b.Fatal(err)
		}
	}
}
