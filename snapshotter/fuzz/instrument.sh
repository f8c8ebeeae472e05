#!/bin/sh
# RUSTC_WORKSPACE_WRAPPER of `make fuzz`: instruments capsuled and the targets as cargo-fuzz does, with what stable Rust
# has, and turns the checks of arithmetic on. Build scripts and other crates stay as they are: their build is shared.
set -eu
case " $* " in
*" --crate-name capsuled "*"--crate-type lib"* | *" --crate-name capsule_fuzz "*)
	exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
		-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
		-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on
	;;
esac
exec "$@"
