# make build | run | test | bench; see README.md.
GO ?= go
export CGO_ENABLED = 0

.PHONY: build test
build:
	$(GO) build -trimpath -o bin/ ./cmd/...

test:
	$(GO) vet ./...
	$(GO) test -timeout 15m ./...
