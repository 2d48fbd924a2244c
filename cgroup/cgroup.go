// Package cgroup makes, limits, measures, kills and removes control groups on
// cgroup v2, v1 and hybrid hosts alike. State is the kernel's own; nothing else
// is kept. It is called by the engine (containers, pods), by the agent (the
// kubepods tree) and by the OCI command line.
package cgroup

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Hierarchy is the host's cgroup set-up, found once at start. Safe for
// concurrent use.
type Hierarchy struct{}

// Detect reads the mount table.
func Detect() (*Hierarchy, error) { panic("not yet") }

// Unified tells whether the host uses cgroup v2 alone.
func (h *Hierarchy) Unified() bool { panic("not yet") }

// Group names the group at path ("/kubepods/pod1/ctr"), which need not exist.
// A path of the form "a-b.slice:prefix:name" is the systemd driver's.
func (h *Hierarchy) Group(path string) *Group { panic("not yet") }

// Group is one control group in every hierarchy that the host has.
type Group struct{}

// Path is the group's path below each hierarchy's root.
func (g *Group) Path() string { panic("not yet") }

// Create makes the group and its parents; existing ones are no error. On v2 it
// enables the controllers for it down the tree.
func (g *Group) Create() error { panic("not yet") }

// Set applies limits, all or nothing as far as the kernel allows; an error
// names the field ("linux.resources.memory.limit").
func (g *Group) Set(r *specs.LinuxResources) error { panic("not yet") }

// JoinFiles are the files a thread writes "0" to in order to join (v1: tasks of
// each hierarchy; v2: cgroup.procs), Dir the v2 directory or "".
func (g *Group) JoinFiles() []string { panic("not yet") }
func (g *Group) Dir() string         { panic("not yet") }

// Procs lists the processes of the group and its descendants.
func (g *Group) Procs() ([]int, error) { panic("not yet") }

// Kill kills all of them, and waits until the group is empty or ctx ends.
func (g *Group) Kill(ctx context.Context) error { panic("not yet") }

// Freeze and Thaw stop and continue them.
func (g *Group) Freeze(ctx context.Context) error { panic("not yet") }
func (g *Group) Thaw(ctx context.Context) error   { panic("not yet") }

// Remove removes the group and its descendants, which must be empty of
// processes; it waits a little for dying ones. A missing group is no error.
func (g *Group) Remove(ctx context.Context) error { panic("not yet") }

// OOMKills is how often the kernel killed a process of the group for its
// memory limit since the group was made.
func (g *Group) OOMKills() (uint64, error) { panic("not yet") }

// Stats is what a group has used.
type Stats struct {
	Time             time.Time
	CPUNanoseconds   uint64 // since creation
	MemoryBytes      uint64 // usage
	WorkingSetBytes  uint64 // usage less inactive file pages, as cAdvisor has it
	RSSBytes         uint64
	PageFaults       uint64
	MajorPageFaults  uint64
	MemoryLimitBytes uint64 // 0: none
	SwapBytes        uint64
	SwapLimitBytes   uint64
	Pids             uint64
}

// Stats reads the group's files.
func (g *Group) Stats() (Stats, error) { panic("not yet") }
