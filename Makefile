# make build | run | test | bench; see README.md.
GO ?= go
export CGO_ENABLED = 0

.PHONY: build test bench
build:
	$(GO) build -trimpath -o bin/ ./cmd/...

# Side by side with containerd, where that is installed; see docs/bench.md.
bench:
	$(GO) run ./test/bench

test:
	$(GO) vet ./...
	$(GO) test -timeout 15m ./...
