// Package systemd makes control groups that are systemd's units: scopes for
// containers and slices for pods. It is the cgroup.Driver of hosts where systemd
// is in charge of the tree, as a kubelet's cgroupDriver or a runtime's
// --systemd-cgroup says; it is called through cgroup.Group alone.
//
//	Start    StartTransientUnit, and wait for the job
//	Set      SetUnitProperties, after the kernel has accepted the limits
//	Settle   end the process that held the scope
//	Stop     StopUnit, and wait for the job
//
// It talks D-Bus, to systemd's own socket where it can, else by the bus. Units
// outlive a crash, and so do containers in them. The process that stands in for
// a container until that is there ends with us, and its scope then with it.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"podstead/cgroup"
)

// jobTimeout bounds how long systemd may take for a unit.
const jobTimeout = 30 * time.Second

const (
	service = "org.freedesktop.systemd1"
	object  = "/org/freedesktop/systemd1"
	manager = service + ".Manager"
)

// Property is a property of a unit.
type Property struct {
	Name  string
	Value dbus.Variant
}

// Options says which systemd is in charge, and how.
type Options struct {
	// Addresses are D-Bus addresses to try in turn; without any they are those
	// of the host's systemd, or with User of the user's.
	Addresses []string
	User      bool
	// Park starts a process that does nothing until end is called or this
	// process ends: systemd makes no scope without one.
	Park func() (pid int, end func() error, err error)
}

// Manager is a systemd. It is safe for concurrent use.
type Manager struct {
	opt Options

	mu     sync.Mutex
	conn   *dbus.Conn
	parked map[string]func() error // by scope
}

// New returns a Manager, which connects when it has something to do.
func New(opt Options) *Manager {
	m := &Manager{opt: opt, parked: map[string]func() error{}}
	if len(m.opt.Addresses) == 0 {
		m.opt.Addresses = addresses(opt.User)
	}
	return m
}

// Check tells whether systemd can be reached.
func (m *Manager) Check() error {
	_, err := m.connected()
	return err
}

// With is the manager with further properties for the scopes that it starts.
func (m *Manager) With(properties []Property) cgroup.Driver {
	return &annotated{m, properties}
}

// annotated is a manager for scopes with properties of their own.
type annotated struct {
	*Manager
	properties []Property
}

func (a *annotated) Start(unit, parent string) (bool, error) {
	return a.start(unit, parent, a.properties)
}

// addresses are where systemd listens itself, and the bus.
func addresses(user bool) (list []string) {
	if !user {
		return []string{"unix:path=/run/systemd/private", "unix:path=/run/dbus/system_bus_socket"}
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		list = append(list, "unix:path="+dir+"/systemd/private", "unix:path="+dir+"/bus")
	}
	if bus := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); bus != "" {
		list = append(list, bus)
	}
	return list
}

// Root is the group that holds the manager's units, "" for the host's root.
func (m *Manager) Root() (string, error) {
	if !m.opt.User {
		return "", nil
	}
	v, err := m.property("ControlGroup")
	if err != nil {
		return "", fmt.Errorf("systemd: the group of the user's units: %w", err)
	}
	root, _ := v.Value().(string)
	return root, nil
}

// Close closes the connection.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn == nil {
		return nil
	}
	return m.conn.Close()
}

// connected returns a connection that works. systemd closes its own when it
// executes itself anew.
func (m *Manager) connected() (*dbus.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.conn.Connected() {
		return m.conn, nil
	}
	errs := []error{errors.New("systemd cannot be reached")}
	for _, address := range m.opt.Addresses {
		conn, err := connect(address)
		if err == nil {
			m.conn = conn
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	return nil, errors.Join(errs...)
}

func connect(address string) (*dbus.Conn, error) {
	conn, err := dbus.Dial(address)
	if err != nil {
		return nil, err
	}
	late := time.AfterFunc(jobTimeout, func() { conn.Close() }) // whoever waits for an answer is told then
	err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))})
	if strings.HasSuffix(address, "/private") {
		if err == nil {
			err = begin(conn)
		}
	} else if err == nil {
		if err = conn.Hello(); err == nil {
			err = conn.AddMatchSignal(dbus.WithMatchInterface(manager), dbus.WithMatchMember("JobRemoved"))
		}
	}
	if err == nil { // or it says nothing of jobs
		err = conn.Object(service, object).Call(manager+".Subscribe", 0).Err
	}
	if !late.Stop() {
		err = errors.Join(fmt.Errorf("no answer within %v", jobTimeout), err)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// begin has systemd answer on its own socket. It reads up to 256 bytes at once
// while it authenticates, and if a whole message came with the last of that, it
// looks at it only when there is more to read: for ever, if the caller waits. So
// the first message is one that is longer.
func begin(conn *dbus.Conn) error {
	err := conn.Object(service, object).Call("org.freedesktop.DBus.Peer.Ping", 0, strings.Repeat(" ", 1024)).Err
	if _, answered := err.(dbus.Error); answered {
		return nil
	}
	return err
}

// call calls a method of the manager.
func (m *Manager) call(ctx context.Context, method string, args ...any) *dbus.Call {
	for again := false; ; again = true {
		conn, err := m.connected()
		if err != nil {
			return &dbus.Call{Err: err}
		}
		c := conn.Object(service, object).CallWithContext(ctx, manager+"."+method, 0, args...)
		if again || !isLost(c.Err) {
			return c
		}
		conn.Close() // its end had not been noticed
	}
}

// isLost tells whether a connection has ended.
func isLost(err error) bool {
	return errors.Is(err, dbus.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF)
}

func (m *Manager) property(name string) (dbus.Variant, error) {
	conn, err := m.connected()
	if err != nil {
		return dbus.Variant{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), jobTimeout)
	defer cancel()
	var v dbus.Variant
	err = conn.Object(service, object).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, manager, name).Store(&v)
	return v, err
}

// job calls a method that makes a job, and waits until that is done.
func (m *Manager) job(ctx context.Context, method string, args ...any) error {
	conn, err := m.connected()
	if err != nil {
		return err
	}
	err = jobOn(ctx, conn, method, args...)
	if isLost(err) {
		conn.Close()
		if conn, err = m.connected(); err == nil {
			err = jobOn(ctx, conn, method, args...)
		}
	}
	return err
}

func jobOn(ctx context.Context, conn *dbus.Conn, method string, args ...any) error {
	removed := make(chan *dbus.Signal, 64)
	conn.Signal(removed)
	defer conn.RemoveSignal(removed)
	var job dbus.ObjectPath
	if err := conn.Object(service, object).CallWithContext(ctx, manager+"."+method, 0, args...).Store(&job); err != nil {
		return err
	}
	for {
		select {
		case s, ok := <-removed:
			if !ok {
				return dbus.ErrClosed
			}
			// (id, job, unit, result)
			if s.Name != manager+".JobRemoved" || len(s.Body) != 4 || s.Body[1] != job {
				continue
			}
			if s.Body[3] != "done" {
				return fmt.Errorf("systemd's job ended as %q", s.Body[3])
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for systemd's job: %w", ctx.Err())
		case <-conn.Context().Done():
			return dbus.ErrClosed
		}
	}
}

// Start makes a slice, or a scope in the slice parent with a process that stands
// in for the container's. One that is there stays as it is.
func (m *Manager) Start(unit, parent string) (fresh bool, err error) {
	return m.start(unit, parent, nil)
}

func (m *Manager) start(unit, parent string, further []Property) (fresh bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), jobTimeout)
	defer cancel()
	properties := []Property{
		{"Description", dbus.MakeVariant("podstead " + unit)},
		{"DefaultDependencies", dbus.MakeVariant(false)},
	}
	for _, what := range []string{"CPU", "Memory", "IO", "Tasks"} {
		properties = append(properties, Property{what + "Accounting", dbus.MakeVariant(true)})
	}
	if strings.HasSuffix(unit, ".slice") {
		return m.startTransient(ctx, unit, properties)
	}
	if strings.HasSuffix(parent, ".slice") {
		properties = append(properties, Property{"Slice", dbus.MakeVariant(parent)})
	}
	if m.opt.Park == nil {
		return false, errors.New("no process to make the scope with")
	}
	pid, end, err := m.opt.Park()
	if err != nil {
		return false, err
	}
	properties = append(properties,
		Property{"PIDs", dbus.MakeVariant([]uint32{uint32(pid)})},
		Property{"Delegate", dbus.MakeVariant(true)},
	)
	properties = append(properties, further...)
	fresh, err = m.startTransient(ctx, unit, properties)
	if err != nil || !fresh {
		return fresh, errors.Join(err, end())
	}
	m.mu.Lock()
	m.parked[unit] = end
	m.mu.Unlock()
	return true, nil
}

// auxiliary is a further unit of StartTransientUnit, of which there is none.
type auxiliary struct {
	Name       string
	Properties []Property
}

func (m *Manager) startTransient(ctx context.Context, unit string, properties []Property) (fresh bool, err error) {
	start := func() error {
		return m.job(ctx, "StartTransientUnit", unit, "fail", properties, []auxiliary{})
	}
	err = start()
	if isError(err, "UnitExists") && strings.HasSuffix(unit, ".slice") {
		return false, nil
	}
	if isError(err, "UnitExists") { // one that has failed and was not looked at
		if rerr := m.call(ctx, "ResetFailedUnit", unit).Err; rerr == nil {
			err = start()
		}
	}
	if err != nil {
		return false, fmt.Errorf("systemd: start %s: %w", unit, err)
	}
	return true, nil
}

// isError tells errors of systemd apart.
func isError(err error, names ...string) bool {
	var e dbus.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, n := range names {
		if e.Name == service+"."+n {
			return true
		}
	}
	return false
}

// Set tells systemd of a unit's limits.
func (m *Manager) Set(unit string, r *specs.LinuxResources, v2 bool) error {
	properties, err := limits(r, v2)
	if err != nil || len(properties) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), jobTimeout)
	defer cancel()
	if err := m.call(ctx, "SetUnitProperties", unit, true, properties).Err; err != nil {
		return fmt.Errorf("systemd: set properties of %s: %w", unit, err)
	}
	return nil
}

// Settle ends the process that stood in.
func (m *Manager) Settle(unit string) error {
	m.mu.Lock()
	end := m.parked[unit]
	delete(m.parked, unit)
	m.mu.Unlock()
	if end == nil {
		return nil
	}
	return end()
}

// Stop ends a unit and waits until it is gone.
func (m *Manager) Stop(ctx context.Context, unit string) error {
	err := m.Settle(unit)
	if serr := m.job(ctx, "StopUnit", unit, "replace"); serr != nil && !isError(serr, "NoSuchUnit") {
		err = errors.Join(err, fmt.Errorf("systemd: stop %s: %w", unit, serr))
	}
	// A unit whose processes were killed counts as failed, until it is looked at.
	if rerr := m.call(ctx, "ResetFailedUnit", unit).Err; rerr != nil && !isError(rerr, "NoSuchUnit") {
		err = errors.Join(err, fmt.Errorf("systemd: reset %s: %w", unit, rerr))
	}
	return err
}
