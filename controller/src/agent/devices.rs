//! Devices that come with attachments. Pure.
//!
//! As with capsules, a device is the agent's own from the moment at which it has said that it will attach it; what is there without that
//! somebody else has given.

use crate::api::{Assigned, Done, PodRef, State};

/// A device that a container of a pod has, by itself or with a capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The pod's uid.
    pub pod: String,
    /// The container's name in the pod.
    pub container: String,
    /// The device's CDI name.
    pub device: String,
}

fn has(held: &[Held], pod: &PodRef, container: &str, device: &str) -> bool {
    held.iter().any(|one| one.pod == pod.uid && one.container == container && one.device == device)
}

/// Those of what is wanted that the container lacks.
pub fn missing(wanted: &Assigned, held: &[Held]) -> Vec<String> {
    let lacks = |device: &&String| !has(held, &wanted.pod, &wanted.container, device);
    wanted.devices.iter().filter(lacks).cloned().collect()
}

/// Those of what is wanted that an agent has attached to the container, for whomever.
pub fn made(wanted: &Assigned, before: &[Done]) -> Vec<String> {
    let made: Vec<&String> =
        before.iter().filter(|done| is_same(done, wanted)).flat_map(|done| &done.devices).collect();
    wanted.devices.iter().filter(|device| made.contains(device)).cloned().collect()
}

/// Those of what is not wanted any more that go: nobody else wants them, and they are there or may still come.
pub fn leaving(done: &Done, assigned: &[Assigned], held: &[Held]) -> Vec<String> {
    let is_wanted =
        |device: &String| assigned.iter().any(|other| is_same(done, other) && other.devices.contains(device));
    let may_be =
        |device: &String| done.state != State::Attached || has(held, &done.pod, &done.container, device);
    done.devices.iter().filter(|device| !is_wanted(device) && may_be(device)).cloned().collect()
}

fn is_same(done: &Done, wanted: &Assigned) -> bool {
    (&done.pod, &done.container) == (&wanted.pod, &wanted.container)
}
