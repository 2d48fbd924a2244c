package agent

import "podstead/agent/internal/source"

// Verdict is what would become of one object of a manifest.
type Verdict = source.Verdict

// Check tells what would become of each object of a manifest, without a node.
func Check(manifest []byte) ([]Verdict, error) {
	d, err := source.NewDecoder("node")
	if err != nil {
		return nil, err
	}
	return d.Check(manifest), nil
}
