# What a contributor types. `make demo` and `make test` need root.

export CGO_ENABLED = 0
GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# How many times the usual work `make soak` does.
SOAK ?= 40

.PHONY: build demo test bench lint soak

build:
	$(GO) build -o ckptfs ./cmd/ckptfs

demo:
	$(GO) run ./cmd/ckptfs demo

test:
	$(GO) test -count=1 -timeout 40m ./...

bench:
	$(GO) test -count=1 -timeout 40m -run '^$$' -bench . -benchtime 3x ./test/bench

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt -w is due:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# The tests that count, with numbers that take hours rather than minutes.
soak:
	CKPTFS_SOAK=1 $(GO) test -count=1 -timeout 2h -v -run Soak ./ckpt/ptrace
	CKPTFS_SOAK=300 $(GO) test -count=1 -timeout 4h -v -run 'Kill|PowerCut|BucketMachines|BucketFault|BucketBadDay' ./store
	CKPTFS_SOAK=$(SOAK) $(GO) test -count=1 -timeout 24h -v -run 'Killed|Cut|Flipped' ./test/e2e
	CKPTFS_SOAK=1 $(GO) test -count=1 -timeout 1h -v -run Redis ./test/e2e
