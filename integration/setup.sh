#!/bin/sh
# Installs what the test bed needs and this machine lacks, with the system's package manager. Knows Debian 12 and 13
# and Ubuntu 24.04; does nothing, and needs neither root nor a network, when nothing is missing. With the word `packages`
# also what makes packages, with `static` what links programs with musl, with `image` what also makes
# the image for Kubernetes nodes of them.
set -eu

RUST=1.90
missing=
need() { # PROGRAM PACKAGE
	PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need_file() { # FILE PACKAGE
	[ -e "$1" ] || missing="$missing $2"
}

need cc gcc
need c++ g++
need make make
need mmdebstrap mmdebstrap
need qemu-system-x86_64 qemu-system-x86
need mke2fs e2fsprogs
need mkfs.xfs xfsprogs
need losetup mount
need unshare util-linux
need dpkg-deb dpkg
need gpgv gpgv
need_file /etc/ssl/certs/ca-certificates.crt ca-certificates
need_file /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
need_file /usr/lib/x86_64-linux-gnu/libc.a libc6-dev
need_file /usr/bin/busybox busybox-static
if [ "${1:-}" = packages ]; then
	need dpkg-shlibdeps dpkg-dev
	need go-md2man go-md2man
	need xz xz-utils
fi
if [ "${1:-}" = static ] || [ "${1:-}" = image ]; then
	need x86_64-linux-musl-gcc musl-tools
fi
if [ "${1:-}" = image ]; then
	need buildah buildah
	need readelf binutils
fi

# cargo's version, or nothing. A toolchain that rustup would first have to fetch counts as none.
cargo_version() {
	PATH="$PATH:$HOME/.cargo/bin" cargo --version 2>/dev/null | cut -d' ' -f2
}
new_enough() {
	[ -n "$1" ] && [ "$(printf '%s\n%s\n' "$RUST" "$1" | sort -V | head -n1)" = "$RUST" ]
}
new_enough "$(cargo_version)" || PATH="$PATH:$HOME/.cargo/bin" command -v rustup >/dev/null 2>&1 || missing="$missing rustup"

if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "setup: missing:$missing; run this as root, or install them" >&2
		exit 1
	fi
	echo "setup: installing$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq </dev/null
	for package in $missing; do
		if [ -z "$(apt-cache madison "$package" 2>/dev/null)" ]; then
			echo "setup: this system has no package $package: install it another way (Rust $RUST or newer for rustup)" >&2
			exit 1
		fi
	done
	# shellcheck disable=SC2086 # a list of words
	apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null
fi

if ! new_enough "$(cargo_version)"; then
	echo "setup: installing Rust with rustup"
	PATH="$PATH:$HOME/.cargo/bin" rustup toolchain install stable --profile minimal -c clippy -c rustfmt </dev/null
	PATH="$PATH:$HOME/.cargo/bin" rustup default stable </dev/null
fi
