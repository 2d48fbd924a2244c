package eviction

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Policy says when pods go.
type Policy struct {
	Thresholds []Threshold // soft and hard
	Transition time.Duration
	// MaxPodGrace is the grace of a pod that goes for a soft threshold, if that is
	// less than its own.
	MaxPodGrace time.Duration
	// LocalStorage: pods go that use more of the disk than their own limits allow.
	LocalStorage bool
}

const transition = 5 * time.Minute

// hard are the kubelet's thresholds for Linux.
func hard() map[string]string {
	return map[string]string{
		string(MemoryAvailable): "100Mi",
		string(NodeFsAvailable): "10%", string(NodeFsInodes): "5%",
		string(ImageFsAvailable): "15%", string(ImageFsInodes): "5%",
	}
}

// Default is what holds without a KubeletConfiguration. Who has not asked for a
// node's behaviour may well work on a disk that is 91 % full: no pod goes for it.
func Default() Policy {
	return Policy{
		Transition: transition, LocalStorage: true,
		Thresholds: []Threshold{
			{Signal: MemoryAvailable, Amount: Amount{Quantity: 100 << 20}},
			{Signal: NodeFsAvailable, Amount: Amount{Share: 0.10}, Spares: true},
			{Signal: NodeFsInodes, Amount: Amount{Share: 0.05}, Spares: true},
			{Signal: ImageFsAvailable, Amount: Amount{Share: 0.15}, Spares: true},
			{Signal: ImageFsInodes, Amount: Amount{Share: 0.05}, Spares: true},
			{Signal: PidsAvailable, Amount: Amount{Share: 0.05}},
		},
	}
}

// WithAllocatable adds for all pods together the hard thresholds for memory that
// hold for the node.
func (p Policy) WithAllocatable() Policy {
	for _, t := range slices.Clone(p.Thresholds) {
		if t.Signal == MemoryAvailable && !t.Soft {
			t.Signal = AllocatableMemory
			p.Thresholds = append(slices.Clip(p.Thresholds), t)
		}
	}
	return p
}

// Reserved is what the hard thresholds keep free of a node's capacity.
func (p Policy) Reserved(capacity corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, t := range p.Thresholds {
		name := corev1.ResourceMemory
		switch {
		case t.Soft || t.Spares:
			continue
		case t.Signal == NodeFsAvailable:
			name = corev1.ResourceEphemeralStorage
		case t.Signal != MemoryAvailable:
			continue
		}
		all := capacity[name]
		out[name] = *resource.NewQuantity(t.Amount.of(all.Value()), resource.BinarySI)
	}
	return out
}

// Settings are a KubeletConfiguration's fields evictionHard and so on.
type Settings struct {
	Hard, Soft, SoftGracePeriod, MinimumReclaim map[string]string
	// MergeDefaults: Hard changes the defaults instead of standing for them.
	MergeDefaults      bool
	TransitionPeriod   time.Duration // 0: 5m
	MaxPodGraceSeconds int32
}

// Policy is what the settings say. Errors name the field.
func (s Settings) Policy() (Policy, error) {
	p := Policy{Transition: transition, LocalStorage: true, MaxPodGrace: time.Duration(s.MaxPodGraceSeconds) * time.Second}
	if s.TransitionPeriod != 0 {
		p.Transition = s.TransitionPeriod
	}
	var errs []error
	if p.Transition < 0 {
		errs = append(errs, fmt.Errorf("evictionPressureTransitionPeriod: %s is negative", p.Transition))
	}
	if s.MaxPodGraceSeconds < 0 {
		errs = append(errs, fmt.Errorf("evictionMaxPodGracePeriod: %d is negative", s.MaxPodGraceSeconds))
	}
	reclaim, err := amounts("evictionMinimumReclaim", s.MinimumReclaim)
	errs = append(errs, err)
	hard, err := amounts("evictionHard", s.hard())
	errs = append(errs, err)
	soft, err := amounts("evictionSoft", s.Soft)
	errs = append(errs, err)
	graces, err := s.graces()
	errs = append(errs, err)
	for _, signal := range signals {
		if a, ok := hard[signal]; ok && a != (Amount{}) {
			p.Thresholds = append(p.Thresholds, Threshold{Signal: signal, Amount: a, MinReclaim: reclaim[signal]})
		}
		if a, ok := soft[signal]; ok && a != (Amount{}) {
			grace, ok := graces[signal]
			if !ok {
				errs = append(errs, fmt.Errorf("evictionSoftGracePeriod[%s]: it must be there, evictionSoft has %s", signal, signal))
			}
			p.Thresholds = append(p.Thresholds, Threshold{Signal: signal, Amount: a, Soft: true, Grace: grace, MinReclaim: reclaim[signal]})
		}
	}
	return p, errors.Join(errs...)
}

func (s Settings) hard() map[string]string {
	all := hard()
	switch {
	case s.Hard == nil:
	case s.MergeDefaults:
		maps.Copy(all, s.Hard)
	default:
		all = s.Hard
	}
	return all
}

func (s Settings) graces() (map[Signal]time.Duration, error) {
	out := map[Signal]time.Duration{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.SoftGracePeriod)) {
		field := "evictionSoftGracePeriod[" + name + "]"
		if err := known(field, name); err != nil {
			errs = append(errs, err)
			continue
		}
		d, err := time.ParseDuration(s.SoftGracePeriod[name])
		if err != nil || d < 0 {
			errs = append(errs, fmt.Errorf("%s: %q is no duration, or negative", field, s.SoftGracePeriod[name]))
		}
		out[Signal(name)] = d
	}
	return out, errors.Join(errs...)
}

// amounts reads a field of thresholds; 0% and 100% are no threshold.
func amounts(field string, from map[string]string) (map[Signal]Amount, error) {
	out := map[Signal]Amount{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(from)) {
		at := field + "[" + name + "]"
		err := known(at, name)
		if err == nil {
			out[Signal(name)], err = amount(at, from[name])
		}
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

func amount(at, text string) (Amount, error) {
	if share, ok := strings.CutSuffix(text, "%"); ok {
		f, err := strconv.ParseFloat(share, 64)
		switch {
		case err != nil || !(f >= 0 && f <= 100):
			return Amount{}, fmt.Errorf("%s: %q is no percentage between 0%% and 100%%", at, text)
		case f == 100:
			return Amount{}, nil
		}
		return Amount{Share: f / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 {
		return Amount{}, fmt.Errorf("%s: %q is no positive quantity and no percentage", at, text)
	}
	return Amount{Quantity: q.Value()}, nil
}

func known(at, name string) error {
	switch {
	case slices.Contains(signals[:], Signal(name)):
		return nil
	case strings.HasPrefix(name, "containerfs."):
		return fmt.Errorf("%s: containers write to the file system of images; set imagefs%s", at, strings.TrimPrefix(name, "containerfs"))
	}
	return fmt.Errorf("%s: there is no such signal; there are %v", at, signals)
}
