// Package systemdtest is a systemd for tests: it speaks D-Bus on a socket of its
// own and knows what the driver asks for. Like the real one it makes a group for
// each unit, moves the processes into it, and removes it when the unit is
// stopped. What a unit was told is kept for the test to look at.
package systemdtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"podstead/cgroup"
)

// Systemd is a service manager with units.
type Systemd struct {
	Address string // for a D-Bus client
	groups  *cgroup.Hierarchy
	paths   *cgroup.Hierarchy // that knows where units are
	root    string

	mu    sync.Mutex
	conns map[net.Conn]bool
	units map[string]map[string]dbus.Variant
	jobs  int
	fail  string // the next job's result, if it is not to be "done"
}

// New starts one that ends with the test. Its units are groups below root.
func New(t testing.TB, root string) *Systemd {
	t.Helper()
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "private")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &Systemd{Address: "unix:path=" + socket, groups: h, root: root, conns: map[net.Conn]bool{}, units: map[string]map[string]dbus.Variant{}}
	s.paths = h.WithDriver(places{root: root})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s
}

// places is a driver that says where units are, and nothing else.
type places struct {
	cgroup.Driver
	root string
}

func (p places) Root() (string, error) { return p.root, nil }

// Group is where a unit's processes are: "a.slice", or "x.scope" with its slice.
func (s *Systemd) group(unit, slice string) (*cgroup.Group, error) {
	if strings.HasSuffix(unit, ".slice") {
		p, err := s.paths.UnitPath(unit)
		return s.groups.Group(p), err
	}
	if slice == "" {
		slice = "system.slice"
	}
	p, err := s.paths.UnitPath(slice)
	return s.groups.Group(p + "/" + unit), err
}

// Unit is what a unit has been told, nil if there is none.
func (s *Systemd) Unit(name string) map[string]dbus.Variant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.units[name])
}

// FailNext has the next job end otherwise than "done".
func (s *Systemd) FailNext(result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = result
}

// Hang up closes all connections, as systemd does when it executes itself anew.
func (s *Systemd) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

func (s *Systemd) serve(c net.Conn) {
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		c.Close()
	}()
	in := bufio.NewReader(c)
	if !authenticate(in, c) {
		return
	}
	for {
		m, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		if m.Type == dbus.TypeMethodCall {
			s.answer(c, m)
		}
	}
}

// authenticate lets everybody in who gets so far.
func authenticate(in *bufio.Reader, c net.Conn) bool {
	if b, err := in.ReadByte(); err != nil || b != 0 {
		return false
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}
		reply := "ERROR"
		switch f := strings.Fields(line); {
		case len(f) == 1 && f[0] == "AUTH":
			reply = "REJECTED EXTERNAL"
		case len(f) > 1 && f[0] == "AUTH", len(f) > 0 && f[0] == "DATA":
			reply = "OK 0123456789abcdef0123456789abcdef"
		case len(f) > 0 && f[0] == "NEGOTIATE_UNIX_FD":
			reply = "AGREE_UNIX_FD"
		case len(f) > 0 && f[0] == "BEGIN":
			return true
		}
		if _, err := fmt.Fprintf(c, "%s\r\n", reply); err != nil {
			return false
		}
	}
}

func (s *Systemd) answer(c net.Conn, m *dbus.Message) {
	member, _ := m.Headers[dbus.FieldMember].Value().(string)
	body, err := s.do(c, member, m.Body)
	reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(m.Serial()),
	}, Body: body}
	if err != nil {
		reply.Type = dbus.TypeError
		reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant(err.Name)
		reply.Body = err.Body
	}
	send(c, reply)
}

func send(c net.Conn, m *dbus.Message) {
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	_ = m.EncodeTo(c, binary.LittleEndian) // whoever has gone needs no answer
}

func failure(name, text string) *dbus.Error {
	return &dbus.Error{Name: "org.freedesktop.systemd1." + name, Body: []any{text}}
}

func (s *Systemd) do(c net.Conn, member string, body []any) ([]any, *dbus.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch member {
	case "Subscribe", "Hello", "AddMatch":
		return nil, nil
	case "Get":
		return []any{dbus.MakeVariant(s.root)}, nil
	case "StartTransientUnit":
		return s.start(c, body[0].(string), body[2].([][]any))
	case "SetUnitProperties":
		return s.set(body[0].(string), body[2].([][]any))
	case "StopUnit":
		return s.stop(c, body[0].(string))
	case "ResetFailedUnit":
		return nil, failure("NoSuchUnit", "not loaded")
	}
	return nil, failure("Unknown", member)
}

func (s *Systemd) start(c net.Conn, unit string, properties [][]any) ([]any, *dbus.Error) {
	if s.units[unit] != nil {
		return nil, failure("UnitExists", unit+" was already loaded")
	}
	u := map[string]dbus.Variant{}
	for _, p := range properties {
		u[p[0].(string)] = p[1].(dbus.Variant)
	}
	slice, _ := u["Slice"].Value().(string)
	pids, _ := u["PIDs"].Value().([]uint32)
	if strings.HasSuffix(unit, ".scope") && len(pids) == 0 {
		return nil, failure("BadUnitSetting", "a scope without processes")
	}
	if s.fail == "" {
		g, err := s.group(unit, slice)
		if err == nil {
			err = g.Create()
		}
		for _, pid := range pids {
			if err == nil {
				err = g.Attach(int(pid))
			}
		}
		if err != nil {
			return nil, failure("Failed", err.Error())
		}
		s.units[unit] = u
	}
	return s.job(c, unit)
}

func (s *Systemd) set(unit string, properties [][]any) ([]any, *dbus.Error) {
	u := s.units[unit]
	if u == nil {
		return nil, failure("NoSuchUnit", unit)
	}
	for _, p := range properties {
		u[p[0].(string)] = p[1].(dbus.Variant)
	}
	return nil, nil
}

func (s *Systemd) stop(c net.Conn, unit string) ([]any, *dbus.Error) {
	u := s.units[unit]
	if u == nil {
		return nil, failure("NoSuchUnit", unit)
	}
	slice, _ := u["Slice"].Value().(string)
	g, err := s.group(unit, slice)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err == nil {
		err = g.Kill(ctx)
	}
	if err == nil {
		err = g.Remove(ctx)
	}
	if err != nil {
		return nil, failure("Failed", err.Error())
	}
	delete(s.units, unit)
	return s.job(c, unit)
}

// job answers with a job that is done at once, which may be heard of before the
// answer.
func (s *Systemd) job(c net.Conn, unit string) ([]any, *dbus.Error) {
	s.jobs++
	path := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", s.jobs))
	result := "done"
	if s.fail != "" {
		result, s.fail = s.fail, ""
	}
	send(c, &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/systemd1")),
		dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.systemd1.Manager"),
		dbus.FieldMember:    dbus.MakeVariant("JobRemoved"),
	}, Body: []any{uint32(s.jobs), path, unit, result}})
	return []any{path}, nil
}
