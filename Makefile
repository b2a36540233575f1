# make        build everything
# make test   all tests, with the real parts they need
# make test-chutney   the end-to-end cases on a network that Chutney runs; CHUTNEY_PATH names its checkout
# make demo   see a page that refuses Tor open through an exit bridge
# make demo-onion   the same for a client that knows only an exit-bridge directory
# make demo-cloud   the same with exit bridges in an emulated cloud, booted as guests
# make demo-ctor   the same for people who keep their own C tor, patched or not
# make demo-volunteer   a home lends its idle address, from consent to the end, in a virtual display
# make deb    Debian packages of the client and of the volunteer's app, in target/debian
# make appimage RUNTIME=FILE   an AppImage of the volunteer's app, in target/appimage; the file is the AppImage project's type2-runtime
# make windows   eebt-client.exe and hebtor-volunteer.exe, by MinGW; what was tried of them: hebtor-volunteer/README.md
# make check-elsewhere   do the same two compile for Windows and for macOS?
# make demo-auto    a browser loads a page of which one part is refused to Tor, with nothing chosen

CARGO ?= cargo
PROFILE := --release
# Programs that only tests need.
TEST_NEEDS := firefox-esr chromium certutil torsocks wget sshd ssh nc.openbsd dpkg-shlibdeps systemd-analyze nft ip moto prism Xvfb xdotool dbus-daemon dbusmock mksquashfs

.PHONY: build setup demo demo-onion demo-auto demo-cloud demo-ctor demo-volunteer deb appimage windows check-elsewhere test test-chutney has-chutney e2e bench lint fmt clean

build: setup
	$(CARGO) build $(PROFILE) --workspace --bins

# System packages, and the patched source of Arti crates.
setup:
	@./deploy/setup
	@./tor-patches/arti/prepare

demo: build
	@./deploy/demo

demo-onion: build
	@./deploy/demo-onion

demo-auto: build
	@./deploy/setup firefox-esr
	@./deploy/demo-auto

demo-cloud: build
	@./deploy/setup moto ip systemd-nspawn mmdebstrap nft
	@./deploy/demo-cloud

demo-ctor: build
	@./deploy/demo-ctor

demo-volunteer: build
	@./deploy/setup chromium Xvfb xdotool
	@./deploy/demo-volunteer

deb: build
	@./deploy/setup dpkg-shlibdeps
	@./deploy/deb target/debian eebt-client
	@./deploy/deb target/debian hebtor-volunteer

appimage: build
	@./deploy/setup mksquashfs
	@./deploy/appimage "$(RUNTIME)"

windows: setup
	@./deploy/setup x86_64-w64-mingw32-gcc
	$(CARGO) build $(PROFILE) --target x86_64-pc-windows-gnu -p eebt-client -p hebtor-volunteer --bins

check-elsewhere: setup
	@./deploy/check-elsewhere

# Always the whole workspace, so that every command sees the same features and nothing is built twice.
test: build
	@./deploy/setup $(TEST_NEEDS)
	EXIT_BRIDGE_TOR=$$(./tor-patches/c-tor/build test) && export EXIT_BRIDGE_TOR && $(CARGO) test $(PROFILE) --workspace

# The end-to-end cases, or a few (CASE=vanguards), with Chutney in testnet's place; and what testnet promises of it.
test-chutney: has-chutney build
	@./deploy/setup $(TEST_NEEDS)
	EXIT_BRIDGE_TOR=$$(./tor-patches/c-tor/build) && export EXIT_BRIDGE_TOR && \
	    TESTNET_CHUTNEY=$(CURDIR)/chutney-configs/networks/basic $(CARGO) test $(PROFILE) --workspace --test e2e -- $(CASE)
	$(CARGO) test $(PROFILE) --workspace --test chutney -- --include-ignored

has-chutney:
	@[ -f "$(CHUTNEY_PATH)/chutney" ] || { echo "error: CHUTNEY_PATH is to name a checkout of Chutney" >&2; \
	    echo "hint: git clone https://gitlab.torproject.org/tpo/core/chutney ~/chutney; export CHUTNEY_PATH=~/chutney" >&2; exit 1; }

# One end-to-end case or a few: make e2e CASE=vanguards
e2e: build
	@./deploy/setup $(TEST_NEEDS)
	EXIT_BRIDGE_TOR=$$(./tor-patches/c-tor/build) && export EXIT_BRIDGE_TOR && \
	    $(CARGO) test $(PROFILE) --workspace --test e2e -- $(CASE)

# Ways out of Tor, side by side: make bench, or make bench ARGS='--quick --latency 0ms'
bench: build
	@./deploy/setup microsocks stunnel4 moto
	$(or $(CARGO_TARGET_DIR),target)/release/bench $(ARGS)

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings

fmt:
	$(CARGO) fmt --all

clean:
	$(CARGO) clean
	rm -rf tor-patches/arti/patched

# C tor with the series that lets it use exit bridges; prints where it is
.PHONY: c-tor
c-tor:
	@./tor-patches/c-tor/build test

# Fuzz one decoder for a minute: make fuzz TARGET=bridge_line (or attestation, descriptor,
# directory_message, port_set, target)
.PHONY: fuzz
fuzz:
	./fuzz/run $(or $(TARGET),bridge_line) 60
