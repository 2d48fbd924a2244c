package observe

import "fmt"

// Resources are what a container has of cpu, in thousandths, and memory, in
// bytes. What is 0 is not set.
type Resources struct {
	CPURequest, CPULimit       int64
	MemoryRequest, MemoryLimit int64
}

const resourcesFormat = "%d %d %d %d"

// String is what ParseResources reads.
func (r Resources) String() string {
	return fmt.Sprintf(resourcesFormat, r.CPURequest, r.CPULimit, r.MemoryRequest, r.MemoryLimit)
}

// ParseResources returns nothing for what it cannot read.
func ParseResources(text string) (r Resources) {
	if _, err := fmt.Sscanf(text, resourcesFormat, &r.CPURequest, &r.CPULimit, &r.MemoryRequest, &r.MemoryLimit); err != nil {
		return Resources{}
	}
	return r
}

// CPU is the part of r that is of cpu.
func (r Resources) CPU() Resources { return Resources{CPURequest: r.CPURequest, CPULimit: r.CPULimit} }

// Memory is the part of r that is of memory.
func (r Resources) Memory() Resources {
	return Resources{MemoryRequest: r.MemoryRequest, MemoryLimit: r.MemoryLimit}
}
