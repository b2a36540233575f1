# make        build everything
# make test   all tests, with the real parts they need
# make demo   see a page that refuses Tor open through an exit bridge

CARGO ?= cargo
PROFILE := --release

.PHONY: build setup demo test unit e2e lint fmt clean

build: setup
	$(CARGO) build $(PROFILE) --workspace --bins

# System packages, and the patched source of Arti crates.
setup:
	@./deploy/setup
	@./tor-patches/arti/prepare

demo: build
	@./deploy/demo

test: setup
	$(CARGO) test $(PROFILE) --workspace --exclude tests
	$(CARGO) test $(PROFILE) -p tests

unit: setup
	$(CARGO) test $(PROFILE) --workspace --exclude tests

e2e: build
	$(CARGO) test $(PROFILE) -p tests

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings

fmt:
	$(CARGO) fmt --all

clean:
	$(CARGO) clean
	rm -rf tor-patches/arti/patched
