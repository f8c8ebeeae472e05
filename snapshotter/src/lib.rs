//! capsuled, the node daemon of Resource Capsules.
//!
//! Rooms, each of which may use only those to its right:
//! `service` → `collect` → `snapshots`, `capsules`, `attachments`, `devices` → `resources`, `metrics`, `events` → `store`, `dirs`, `trees`, `containerd`, `docker`, `shims` → `config`.
//! `daemon` puts them together; `server`, `handover` and `notify` are about its sockets and its life, `agreement` about what
//! containerd believes of it.
//! The pure types of `snapshots` and `attachments` (`model`, the mount options) belong to all rooms.
//! Only `service` sees tonic's server side, only `store` sees the database, only `dirs` names the paths on disk.
//! Nothing here enters a container: that is the shim's work.

mod agreement;
pub mod attachments;
pub mod capsules;
pub mod collect;
pub mod config;
pub mod containerd;
pub mod daemon;
pub mod devices;
pub mod dirs;
pub mod docker;
pub mod events;
pub mod filters;
pub mod full;
pub mod handover;
pub mod metrics;
pub mod node;
pub mod notify;
pub mod resources;
pub mod server;
pub mod service;
pub mod shims;
pub mod snapshots;
pub mod store;
pub mod traces;
pub mod trees;
pub mod uppers;
pub mod volumes;

/// An id that no other has: 96 random bits as 24 hexadecimal digits.
pub(crate) fn fresh_id() -> String {
    let mut bytes = [0_u8; 12];
    // Does not fail once the kernel's generator is seeded, which it is long before daemons start (getrandom(2)).
    let _filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    hex(&bytes)
}

/// Two lower-case hexadecimal digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The machine's architecture by the name that OCI (Go) gives it.
pub(crate) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
