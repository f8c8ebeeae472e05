# The two commands a person needs are `make demo` and `make test`; both do their whole set-up, as root.
#
# Programs are built with the profile `fast` (what the machines run), tests with `dev`.
# Failed tests say why in their error; where they were is no help.
export RUST_BACKTRACE := 0
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
PROGRAMS := $(CURDIR)/target/fast
TESTBED := $(PROGRAMS)/capsule-testbed
# Tests of machines take programs of another profile than their own.
MACHINES := CAPSULE_PROGRAMS=$(PROGRAMS)
ON_MACHINES := --test machines --test leftovers --test power --test trees

.PHONY: demo test release release-shim bench bench-runtime bench-snapshotter bench-storage bench-scale bench-cluster bench-devices soak deb test-packages static image test-static build lint unit fuzz fuzz-build machines native on-native vm on-vm suite test-runtime test-k8s rootfs setup clean

# Attach, upgrade, roll back and detach capsules in a live container, and tell what happens.
demo: build
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) run demo

# Format, lints, units, fuzz targets for a short time, native integration, VM integration.
test: lint unit fuzz machines

# Times of attach, upgrade and detach beside their alternatives: a table and target/bench.json.
bench: build
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) bench

# Our snapshotter beside containerd's own and peers of Debian: a table and target/bench-snapshotter.json. 15 minutes.
bench-snapshotter: build
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) bench-snapshotter

# Our shim, as it is released, beside containerd's own: a table and target/bench-runtime.json. 10 minutes.
bench-runtime: build release-shim
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) bench-runtime

# Ten versions of one tree, here and on containerd's overlayfs: a table and target/bench-storage.json. 1 minute.
bench-storage: build
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) bench-storage

# Devices attached to a live container, beside recreating it with them, in a VM: a table. 10 minutes without KVM.
bench-devices: build
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) run bench-devices --machine vm

# Attach, memory and recovery as a node fills: 10,000 versions, 200 containers, 1,990 attachments. 6 minutes.
bench-scale: build
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) run scale

# What the controller takes for 5,000 nodes with 100,000 pods, on a real API server and nodes that nobody runs. 20 minutes.
bench-cluster: build
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) run kubernetes-large

# What users install, in target/release.
release: release-shim
	cargo build --locked --release -p capsuled -p capsulectl -p capsule-remote

# The shim is linked statically: there is one for each container, three times in its life a process begins, and nothing is
# then left to be loaded and kept. Needs the C library's archive (Debian: libc6-dev).
SHIM := containerd-shim-capsule-v1
release-shim:
	cargo rustc --locked --release -p $(SHIM) --bin $(SHIM) -- -C target-feature=+crt-static

# The Debian package of all programs but capsule-controller, which is a cluster's:
# target/packages/resource-capsules_VERSION-1_amd64.deb. REVISION=2 is a newer one of the same.
REVISION := 1
deb: release cargo-deb
	CARGO_DEB=$(CURDIR)/$(CARGO_DEB) configs/debian/make.sh release $(REVISION)

# Built once, here, in two minutes of one CPU: Debian has none.
CARGO_DEB_VERSION := 3.8.0
CARGO_DEB := target/tools/cargo-deb-$(CARGO_DEB_VERSION)/bin/cargo-deb
.PHONY: cargo-deb
cargo-deb: $(CARGO_DEB)
	@integration/setup.sh packages

# Without its features it compresses with xz(1), and needs no library of C.
$(CARGO_DEB): | setup
	cargo install cargo-deb --version $(CARGO_DEB_VERSION) --locked --no-default-features \
		--root target/tools/cargo-deb-$(CARGO_DEB_VERSION) --target-dir target/tools/build

# The package installed, used, upgraded under readers, removed and purged, in a VM. 5 minutes without KVM, and the release.
test-packages: rootfs
	rm -f target/packages/*.deb
	$(MAKE) deb REVISION=1
	$(MAKE) deb REVISION=2
	@$(TESTBED) run packages --machine vm

# All programs for x86_64 with musl, linked statically, in target/static: they run wherever the kernel does.
MUSL := x86_64-unknown-linux-musl
STATIC := capsuled capsulectl $(SHIM) capsule-remote capsule-controller
static:
	@integration/setup.sh static
	rustup target add $(MUSL)
	cargo build --locked --release --target $(MUSL) $(foreach program,$(STATIC),-p $(program) --bin $(program))
	mkdir -p target/static
	cp $(STATIC:%=target/$(MUSL)/release/%) target/static/

# The image for Kubernetes nodes, of those programs: target/image/resource-capsules.tar, an OCI archive, as `docker load`,
# `ctr image import` and skopeo take it.
image: static
	@integration/setup.sh image
	configs/image/make.sh target/static target/image

# The main job, and what a runtime must do, by those.
test-static: static rootfs
	cp $(PROGRAMS)/capsule-testbed $(PROGRAMS)/capsule-reader target/static/
	@target/static/capsule-testbed run demo
	@target/static/capsule-testbed run conformance

# 5,000 execs in one container, and shims killed at any moment; both runtimes, on containerd 2.1 and 1.7.
soak: build
	@$(TESTBED) prepare
	@$(TESTBED) run soak --suite forky
	@$(TESTBED) run soak --suite trixie

build: setup
	cargo build --locked --profile fast --workspace --bins

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; fi

# Packages are always chosen by --workspace: with others cargo unites other features, and builds what both need twice.
unit: setup
	cargo test --locked --workspace -q -- --skip privileged_native_ --skip privileged_vm_ --skip privileged_nothing_is_left_

# The snapshotter's conformance suite as a program, which machines run beside their containerd.
suite: build
	cargo test --locked --workspace --test conformance --no-run
	@cargo test --locked --workspace --test conformance --no-run -q --message-format=json \
		| sed -n '/"name":"conformance"/s/.*"executable":"\([^"]*\)".*/\1/p' \
		| xargs -I{} cp {} $(PROGRAMS)/capsuled-conformance

# Each fuzz target for so many seconds, guided by coverage. What is found new is kept in target/fuzz and taken up by the
# next run; an input that fails is there too (target/fuzz/TARGET-crash-...): `make fuzz-TARGET` with it in seeds/.
# The same seed leads the same way each time, so that a change is judged by itself; FUZZ_SEED=0 is a new way.
FUZZ_SECONDS := 8
FUZZ_SEED := 1
FUZZ_TARGETS := cdi config filters keys labels oci
FUZZ := $(CURDIR)/snapshotter/fuzz

fuzz: $(addprefix fuzz-,$(FUZZ_TARGETS))

fuzz-build: setup
	RUSTC_WORKSPACE_WRAPPER=$(FUZZ)/instrument.sh cargo build --locked --profile fast --workspace --bin capsule-fuzz --features capsule-fuzz/libfuzzer

fuzz-%: fuzz-build
	mkdir -p target/fuzz/$*
	FUZZ_TARGET=$* $(PROGRAMS)/capsule-fuzz -seed=$(FUZZ_SEED) -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -verbosity=0 \
		-print_final_stats=1 -artifact_prefix=target/fuzz/$*- target/fuzz/$* $(FUZZ)/seeds/$*

# What a container's runtime must do, on every machine: TEST_RUNTIME=io.containerd.runc.v2 or io.containerd.capsule.v1,
# or nothing for both; TEST_CASES is a part of the cases' names ("streams", "log file").
test-runtime: rootfs
	$(MACHINES) TEST_RUNTIME=$(TEST_RUNTIME) TEST_CASES="$(TEST_CASES)" \
		cargo test --locked --workspace --test machines -- --test-threads=1 --skip bench _runtime

# Pods on a cluster of one node, with a real kubelet. What is not Debian's is built from Kubernetes' Go modules, once, in half an hour
# (target/kubernetes); the tests take three quarters of an hour, one of them in a VM. The second node has nothing of ours but what the cluster gives it.
test-k8s: build image
	@$(TESTBED) prepare --suite forky
	@$(TESTBED) run kubernetes
	@$(TESTBED) run kubernetes-image
	@$(TESTBED) run kubernetes-wanted
	@$(TESTBED) run kubernetes-vm --machine vm
	@$(TESTBED) run kubernetes-rollouts
	@$(TESTBED) run kubernetes-storage
	@$(TESTBED) run csi
	@$(TESTBED) run volumes

rootfs: build
	@$(TESTBED) prepare

# Both kinds at once, which takes two thirds of the time; what each says is shown when it has ended, and what failed once more after
# both. Emulated processors get what the others leave.
machines: rootfs suite
	@$(MAKE) --no-print-directory -j2 -k -Otarget on-native on-vm || { grep -hE '(^|: )FAILED |^test .* FAILED$$' target/on-*.log; exit 1; }

# Machines of private namespaces on this kernel.
native: rootfs suite
	@$(MAKE) --no-print-directory on-native
on-native:
	$(MACHINES) cargo test --locked --workspace $(ON_MACHINES) -- --test-threads=1 --skip privileged_vm 2>&1 | tee target/on-native.log

# Machines of Debian's kernel and systemd, in qemu.
vm: rootfs
	@$(MAKE) --no-print-directory on-vm
on-vm:
	$(MACHINES) nice cargo test --locked --workspace $(ON_MACHINES) -- --test-threads=1 privileged_vm 2>&1 | tee target/on-vm.log
on-native on-vm: SHELL := /bin/bash
on-native on-vm: .SHELLFLAGS := -o pipefail -c

setup:
	@integration/setup.sh

clean:
	cargo clean
