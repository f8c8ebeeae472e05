//! The expectations. Each runs on a subject without snapshots of the scenario.

pub mod clients;
pub mod idmaps;
pub mod labels;
pub mod layers;
pub mod lifecycle;
pub mod listings;
pub mod manifest;
pub mod mistakes;
pub mod mounted;
pub mod trees;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use capsule_proto::containerd::types::Mount;
use tonic::{Code, Status};

use super::subject::{Labels, Subject, labels};

fn none() -> Labels {
    Labels::new()
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

fn time(stamp: Option<prost_types::Timestamp>) -> SystemTime {
    SystemTime::try_from(stamp.unwrap()).unwrap()
}

/// The value of an option such as `upperdir=`.
fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// Where what is written to an active snapshot's mount is kept.
fn upper(mount: &Mount) -> PathBuf {
    option(mount, "upperdir").unwrap_or(&mount.source).into()
}

/// Prepares `name-key` on `parent`, lets `write` fill its directory, and commits it as `name`.
async fn layer(subject: &mut Subject, name: &str, parent: &str, write: impl FnOnce(&Path)) {
    let key = format!("{name}-key");
    let mounts = subject.prepare(&key, parent, none()).await.unwrap();
    write(&upper(&mounts[0]));
    subject.commit(name, &key, none()).await.unwrap();
}

/// As [`layer`], with nothing in it.
async fn committed(subject: &mut Subject, name: &str, parent: &str) {
    let key = format!("{name}-key");
    subject.prepare(&key, parent, none()).await.unwrap();
    subject.commit(name, &key, none()).await.unwrap();
}
