//! `containerd-shim-capsule-v1`: containerd's Task API over an OCI runtime, with capsules hot-plugged into live tasks.
//!
//! Rooms, each of which may use only those after it:
//! `shim` (the process: actions, server, end) → `service` (the wire of the Task and Sandbox APIs) and `hotplug` (capsules in live tasks)
//! → `engine` (containers and the life of processes) → `oci` (the runtime's command line), `io` (standard streams),
//! `rootfs` (mounts), `bundle` and `registration` (files), `creation` (devices in a new container's spec), `node` (capsuled, asked), `stats` and `oom` (what a
//! container uses, and too much), `cgroup` (where that is), `devices` (what may be opened there), `events` (to containerd), `command` (run to its end), `reaper` (exits),
//! `exit` (the end), `options`, `message` (encoding), `connection` (to the daemons).

mod bundle;
mod caller;
mod cgroup;
mod command;
mod connection;
mod creation;
mod devices;
mod edits;
mod engine;
mod events;
mod exit;
mod hotplug;
mod io;
mod limits;
mod message;
mod node;
mod oci;
mod oom;
mod options;
mod reaper;
mod registration;
mod rootfs;
mod seccomp;
mod service;
mod shim;
mod stats;

use std::process::ExitCode;

fn main() -> ExitCode {
    shim::run()
}
