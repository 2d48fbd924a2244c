// Package lazyjson reads JSON into Go values as encoding/json does, but learns
// only of the types that it meets. encoding/json learns of all that can be in a
// specification, how to write them included, before it reads the first byte: that
// takes longer than to create a container.
//
// It reads what is plain; all else, and all that is wrong, it leaves to
// encoding/json, from the beginning. So the two never differ in a result, nor in an
// error.
package lazyjson

import (
	"encoding"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Unmarshal is encoding/json's, for a pointer to a zero value.
func Unmarshal(b []byte, to any) error {
	v := reflect.ValueOf(to).Elem()
	r := reader{in: b, types: map[reflect.Type][]field{}}
	if r.value(v) && r.end() {
		return nil
	}
	v.SetZero()
	return json.Unmarshal(b, to)
}

// maxDepth is how deep values may be nested here.
const maxDepth = 200

// reader goes through the input once. Its methods return false for what they do
// not read.
type reader struct {
	in    []byte
	at    int
	depth int
	types map[reflect.Type][]field
}

// field is a field of a struct, which may be one of a struct embedded there.
type field struct {
	name  string
	index []int
}

// next skips white space and returns the byte after it, 0 at the end.
func (r *reader) next() byte {
	for ; r.at < len(r.in); r.at++ {
		switch c := r.in[r.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (r *reader) end() bool { return r.next() == 0 && r.at == len(r.in) }

// take reads one byte, if it comes next.
func (r *reader) take(c byte) bool {
	if r.next() != c || c == 0 {
		return false
	}
	r.at++
	return true
}

// word reads one of JSON's words.
func (r *reader) word(w string) bool {
	if !strings.HasPrefix(string(r.in[r.at:min(len(r.in), r.at+len(w))]), w) {
		return false
	}
	r.at += len(w)
	return true
}

// value reads a value into v, which is zero.
func (r *reader) value(v reflect.Value) bool {
	c := r.next()
	if c == 'n' && v.Kind() != reflect.Interface && !foreign(v.Type()) {
		return r.word("null") // leaves the zero value
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		return r.value(v.Elem())
	}
	if foreign(v.Type()) {
		return r.other(v)
	}
	switch v.Kind() {
	case reflect.Struct:
		return c == '{' && r.object(v)
	case reflect.Map:
		return c == '{' && r.dictionary(v)
	case reflect.Slice:
		return c == '[' && r.list(v)
	case reflect.String:
		s, ok := r.text()
		v.SetString(s)
		return ok
	case reflect.Bool:
		v.SetBool(c == 't')
		return r.word("true") || r.word("false")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return r.integer(v)
	}
	return r.other(v)
}

// foreign tells whether a type reads itself, or is not for this package.
func foreign(t reflect.Type) bool {
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		return true // is written in base 64
	}
	if t.Name() == "" || t.PkgPath() == "" {
		return false
	}
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// other has encoding/json read a value.
func (r *reader) other(v reflect.Value) bool {
	r.next()
	begin := r.at
	return r.skip() && json.Unmarshal(r.in[begin:r.at], v.Addr().Interface()) == nil
}

// members calls do at the value of each member of an object.
func (r *reader) members(do func(name string) bool) bool {
	if r.depth++; r.depth > maxDepth || !r.take('{') {
		return false
	}
	for more := !r.take('}'); more; {
		name, ok := r.text()
		if !ok || !r.take(':') || !do(name) {
			return false
		}
		if more = r.take(','); !more && !r.take('}') {
			return false
		}
	}
	r.depth--
	return true
}

// elements calls do at each element of an array.
func (r *reader) elements(do func() bool) bool {
	if r.depth++; r.depth > maxDepth || !r.take('[') {
		return false
	}
	for more := !r.take(']'); more; {
		if !do() {
			return false
		}
		if more = r.take(','); !more && !r.take(']') {
			return false
		}
	}
	r.depth--
	return true
}

func (r *reader) object(v reflect.Value) bool {
	fields, ok := r.fields(v.Type())
	if !ok {
		return r.other(v)
	}
	seen := make([]bool, len(fields))
	return r.members(func(name string) bool {
		for i, f := range fields {
			if f.name == name {
				if seen[i] {
					return false // the second one goes into what the first has left
				}
				seen[i] = true
				return r.value(v.FieldByIndex(f.index))
			}
		}
		for _, f := range fields {
			if strings.EqualFold(f.name, name) {
				return false // encoding/json takes it for the field
			}
		}
		return r.skip()
	})
}

// fields are those of a struct that JSON may have; not ok if there is more to it
// than names.
func (r *reader) fields(t reflect.Type) (list []field, ok bool) {
	if list, ok := r.types[t]; ok {
		return list, list != nil
	}
	list = make([]field, 0, t.NumField())
	r.types[t] = nil
	for i := range t.NumField() {
		f := t.Field(i)
		tag, tagged := f.Tag.Lookup("json")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case f.Anonymous && !tagged && f.Type.Kind() == reflect.Struct:
			embedded, ok := r.fields(f.Type)
			if !ok {
				return nil, false
			}
			for _, e := range embedded {
				list = append(list, field{e.name, append([]int{i}, e.index...)})
			}
			continue
		case f.Anonymous || name == "-" || strings.Contains(options, "string"):
			return nil, false
		case !f.IsExported():
			continue
		case name == "":
			name = f.Name
		}
		list = append(list, field{name, []int{i}})
	}
	for i, f := range list {
		for _, g := range list[:i] {
			if strings.EqualFold(f.name, g.name) {
				return nil, false // whose is it?
			}
		}
	}
	r.types[t] = list
	return list, true
}

func (r *reader) dictionary(v reflect.Value) bool {
	t := v.Type()
	if t.Key().Kind() != reflect.String || foreign(t.Key()) {
		return r.other(v)
	}
	v.Set(reflect.MakeMap(t))
	return r.members(func(name string) bool {
		e := reflect.New(t.Elem()).Elem()
		if !r.value(e) {
			return false
		}
		v.SetMapIndex(reflect.ValueOf(name).Convert(t.Key()), e)
		return true
	})
}

func (r *reader) list(v reflect.Value) bool {
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	return r.elements(func() bool {
		n := v.Len()
		if n == v.Cap() {
			v.Grow(max(4, n))
		}
		v.SetLen(n + 1)
		return r.value(v.Index(n))
	})
}

// text reads a string.
func (r *reader) text() (string, bool) {
	if !r.take('"') {
		return "", false
	}
	plain := true
	for begin := r.at; r.at < len(r.in); r.at++ {
		switch c := r.in[r.at]; {
		case c == '"':
			s := string(r.in[begin:r.at])
			r.at++
			if plain && utf8.ValidString(s) {
				return s, true
			}
			err := json.Unmarshal(r.in[begin-1:r.at], &s)
			return s, err == nil
		case c == '\\':
			plain = false
			r.at++ // what is escaped ends nothing
		case c < ' ':
			return "", false
		}
	}
	return "", false
}

// number returns the text of a number, and whether it is an integer's.
func (r *reader) number() (s string, integer bool) {
	r.next()
	begin := r.at
	integer = true
	for ; r.at < len(r.in); r.at++ {
		switch c := r.in[r.at]; c {
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		case '+', '.', 'e', 'E':
			integer = false
		default:
			return string(r.in[begin:r.at]), integer
		}
	}
	return string(r.in[begin:r.at]), integer
}

func (r *reader) integer(v reflect.Value) bool {
	s, ok := r.number()
	if digits := strings.TrimPrefix(s, "-"); !ok || len(digits) > 1 && digits[0] == '0' {
		return false
	}
	if v.CanInt() {
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		v.SetInt(n)
		return err == nil
	}
	n, err := strconv.ParseUint(s, 10, v.Type().Bits())
	v.SetUint(n)
	return err == nil
}

// skip reads a value that nobody wants.
func (r *reader) skip() bool {
	switch r.next() {
	case '{':
		return r.members(func(string) bool { return r.skip() })
	case '[':
		return r.elements(r.skip)
	case '"':
		_, ok := r.text()
		return ok
	case 't':
		return r.word("true")
	case 'f':
		return r.word("false")
	case 'n':
		return r.word("null")
	}
	s, _ := r.number()
	return json.Valid([]byte(s))
}
