package nri

import (
	"cmp"
	"slices"
	"time"
)

// State is what a person may want to know.
type State struct {
	Socket string `json:"socket,omitempty"`
	// Problem tells why NRI does not work as configured.
	Problem string   `json:"problem,omitempty"`
	Plugins []Plugin `json:"plugins"`
	// Gone are the last plugins that left or were dropped.
	Gone []Plugin `json:"gone,omitempty"`
}

// Plugin is one plugin.
type Plugin struct {
	Name  string     `json:"name"` // INDEX-NAME
	Since time.Time  `json:"since"`
	Until *time.Time `json:"until,omitempty"`
	// Problem is what it last failed at.
	Problem string `json:"problem,omitempty"`
}

// maxGone bounds how many former plugins are remembered.
const maxGone = 16

// State tells which plugins there are and were.
func (p *Plugins) State() State {
	s := State{Plugins: []Plugin{}}
	if p == nil {
		return s
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Socket, s.Problem, s.Gone = p.opt.Socket, p.problem, slices.Clone(p.gone)
	for l := range p.links {
		if l.name != "" {
			s.Plugins = append(s.Plugins, Plugin{Name: l.name, Since: l.since, Problem: l.problem})
		}
	}
	slices.SortFunc(s.Plugins, func(a, b Plugin) int { return cmp.Compare(a.Name, b.Name) })
	return s
}
