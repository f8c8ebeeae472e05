//! containerd-shim-capsule-v1.
fn main() {}
