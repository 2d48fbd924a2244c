// Package restart kills parts of a running node, as crashes and upgrades do,
// and looks at what its containers and its clients notice.
package restart
