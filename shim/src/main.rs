//! `containerd-shim-capsule-v1`: containerd's Task API over an OCI runtime, with capsules hot-plugged into live tasks.
//!
//! Rooms, each of which may use only those after it:
//! `shim` (the process: actions, server, end) → `service` (the Task API's wire) and `hotplug` (capsules in live tasks)
//! → `engine` (containers and the life of processes) → `oci` (the runtime's command line), `io` (standard streams),
//! `rootfs` (mounts), `bundle` and `registration` (files), `node` (capsuled, asked), `stats` and `oom` (what a
//! container uses, and too much), `cgroup` (where that is), `events` (to containerd), `reaper` (exits), `options`.

mod bundle;
mod cgroup;
mod engine;
mod events;
mod hotplug;
mod io;
mod node;
mod oci;
mod oom;
mod options;
mod reaper;
mod registration;
mod rootfs;
mod service;
mod shim;
mod stats;

/// One thread for all: the shim waits for others nearly all its life, and each thread costs memory.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Children are reaped by our own loop (see `reaper`). The library reads this before it calls any code of ours.
    let config = containerd_shim::Config { no_reaper: true, ..Default::default() };
    containerd_shim::asynchronous::run::<shim::CapsuleShim>("io.containerd.capsule.v1", Some(config)).await;
}
