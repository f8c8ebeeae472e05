//! `volumes`: capsules, and directories that are written to, at paths of the node.

use std::time::SystemTime;

use capsule_proto::capsule::v1;
use serde::Serialize;

use super::Target;
use super::written::Committed;
use crate::args::{VolumeArgs, VolumesCommand};
use crate::error::Error;
use crate::table::Table;
use crate::text::{Text, age, escape_control, size};
use crate::view::{Time, filled};

/// One volume.
#[derive(Debug, Serialize)]
struct Volume {
    id: String,
    /// `null` for a directory that is no capsule's, as are the version and the digest.
    capsule: Option<String>,
    version: Option<String>,
    digest: Option<String>,
    writable: bool,
    /// Bytes that it can hold; `null` for one that is only read.
    size: Option<u64>,
    ephemeral: bool,
    created_at: Option<Time>,
    /// Where it is mounted.
    paths: Vec<String>,
    /// Versions that are still used, though it has another one.
    draining: Vec<String>,
}

impl From<v1::Volume> for Volume {
    fn from(v: v1::Volume) -> Self {
        Self {
            id: v.id,
            capsule: filled(v.capsule),
            version: filled(v.version),
            digest: filled(v.digest),
            writable: v.writable,
            size: Some(v.size).filter(|size| *size > 0),
            ephemeral: v.ephemeral,
            created_at: v.created_at.map(Time),
            paths: v.paths,
            draining: v.draining,
        }
    }
}

impl Volume {
    fn label(&self) -> String {
        match (&self.capsule, &self.version) {
            (Some(capsule), Some(version)) => format!("{capsule}@{version}"),
            _ => "a directory".to_owned(),
        }
    }
}

/// Result of `volumes`.
#[derive(Debug, Serialize)]
struct Volumes {
    volumes: Vec<Volume>,
}

impl Text for Volumes {
    fn text(&self, now: SystemTime) -> String {
        let mut table = Table::new(["ID", "CAPSULE", "MODE", "SIZE", "CREATED", "PATHS"]);
        for v in &self.volumes {
            let draining = if v.draining.is_empty() {
                String::new()
            } else {
                format!(" (draining: {})", v.draining.join(", "))
            };
            table.row([
                v.id.clone(),
                v.label() + &draining,
                if v.writable { "rw" } else { "ro" }.to_owned(),
                v.size.map(size).unwrap_or_default(),
                age(v.created_at, now),
                v.paths.join(" "),
            ]);
        }
        table.to_string()
    }
}

/// Result of what is done with one.
#[derive(Debug, Serialize)]
struct Done {
    volume: Volume,
    #[serde(skip)]
    line: String,
}

impl Text for Done {
    fn text(&self, _: SystemTime) -> String {
        escape_control(&self.line) + "\n"
    }
}

/// Result of `volumes upgrade`.
#[derive(Debug, Serialize)]
struct Upgraded {
    volume: Volume,
    from_version: String,
    /// Mounts that have the new version now.
    mounts: u32,
    /// Mounts in containers that have the version before yet.
    left: u32,
}

impl Text for Upgraded {
    fn text(&self, _: SystemTime) -> String {
        let Self { volume, from_version, mounts, left } = self;
        let mut line = format!("{} has {}, from {from_version}: {mounts} mounts", volume.id, volume.label());
        if *left > 0 {
            line.push_str(&format!("; {left} in containers cannot be reached yet, and are tried again"));
        }
        escape_control(&line) + "\n"
    }
}

/// Result of `volumes stat`.
#[derive(Debug, Serialize)]
struct Stat {
    volume: Volume,
    total_bytes: u64,
    available_bytes: u64,
    used_bytes: u64,
    total_files: u64,
    available_files: u64,
    used_files: u64,
    /// `null` when all is as it should be.
    trouble: Option<String>,
}

impl Text for Stat {
    fn text(&self, _: SystemTime) -> String {
        let mut line = format!("{}: {}", self.volume.id, self.volume.label());
        if self.total_bytes > 0 {
            let (used, total) = (size(self.used_bytes), size(self.total_bytes));
            line.push_str(&format!(", {used} of {total} used, {} files", self.used_files));
        }
        let trouble = self.trouble.as_deref().unwrap_or("as it should be");
        escape_control(&format!("{line}: {trouble}")) + "\n"
    }
}

/// Result of `volumes umount`.
#[derive(Debug, Serialize)]
struct Unmounted {
    id: String,
    path: String,
}

impl Text for Unmounted {
    fn text(&self, _: SystemTime) -> String {
        escape_control(&format!("{} is not mounted at {}", self.id, self.path)) + "\n"
    }
}

fn spec(args: VolumeArgs) -> v1::VolumeSpec {
    let of_id = || args.id.rsplit('/').next().map(ToOwned::to_owned);
    let named = if args.directory { None } else { args.capsule.clone().or_else(of_id) };
    let (capsule, version) =
        named.as_deref().map_or(("", ""), |text| text.split_once('@').unwrap_or((text, "")));
    v1::VolumeSpec {
        capsule: capsule.to_owned(),
        version: version.to_owned(),
        writable: args.writable || args.directory,
        size: args.size.map(|size| size.as_u64()).unwrap_or_default(),
        owner: args.owner.map(|(uid, gid)| v1::VolumeOwner { uid, gid }),
        permissions: args.permissions,
        id: args.id,
    }
}

fn volume(answer: Option<v1::Volume>) -> Result<Volume, Error> {
    Ok(answer.ok_or(Error::Answer("volumes"))?.into())
}

fn done(to: Target<'_>, volume: Volume, said: &str) -> Result<(), Error> {
    let line = format!("{} {said}: {}", volume.id, volume.label());
    let done = Done { volume, line };
    to.print(&done, &done)
}

pub async fn volumes(to: Target<'_>, command: Option<VolumesCommand>) -> Result<(), Error> {
    let mut client = to.connect().await?.volumes();
    match command.unwrap_or(VolumesCommand::Ls) {
        VolumesCommand::Ls => {
            let answer = client.list_volumes(v1::ListVolumesRequest {}).await?.into_inner();
            let all = Volumes { volumes: answer.volumes.into_iter().map(Volume::from).collect() };
            to.print(&all, &all)
        }
        VolumesCommand::Create(args) => {
            let request = v1::CreateVolumeRequest { spec: Some(spec(args)) };
            let answer = client.create_volume(request).await?.into_inner();
            let said = if answer.existed { "was there already" } else { "is made" };
            done(to, volume(answer.volume)?, said)
        }
        VolumesCommand::Mount { volume: args, path, read_only } => {
            let said = format!("is mounted at {path}");
            let spec = Some(spec(args));
            let request = v1::MountVolumeRequest { spec, path, read_only, ephemeral: false };
            done(to, volume(client.mount_volume(request).await?.into_inner().volume)?, &said)
        }
        VolumesCommand::Umount { id, path } => {
            let request = v1::UnmountVolumeRequest { id: id.clone(), path: path.clone() };
            client.unmount_volume(request).await?;
            let unmounted = Unmounted { id, path };
            to.print(&unmounted, &unmounted)
        }
        VolumesCommand::Upgrade { id, version } => {
            let answer = client.replace_volume(v1::ReplaceVolumeRequest { id, version }).await?.into_inner();
            let v1::ReplaceVolumeResponse { volume: now, from_version, mounts, left } = answer;
            let upgraded = Upgraded { volume: volume(now)?, from_version, mounts, left };
            to.print(&upgraded, &upgraded)
        }
        VolumesCommand::Commit { id, version, tags } => {
            let answer =
                client.commit_volume(v1::CommitVolumeRequest { id, version, tags }).await?.into_inner();
            let v1::CommitVolumeResponse { version, existed, from_version } = answer;
            let version = version.ok_or(Error::Answer("volumes commit"))?.into();
            let committed = Committed { version, existed, from_version };
            to.print(&committed, &committed)
        }
        VolumesCommand::Stat { id, path } => {
            let request = v1::StatVolumeRequest { id, path: path.unwrap_or_default() };
            let stat = stat(client.stat_volume(request).await?.into_inner())?;
            to.print(&stat, &stat)
        }
        VolumesCommand::Rm { id } => {
            let removed = client.remove_volume(v1::RemoveVolumeRequest { id }).await?.into_inner();
            done(to, volume(removed.volume)?, "is removed")
        }
    }
}

fn stat(answer: v1::StatVolumeResponse) -> Result<Stat, Error> {
    Ok(Stat {
        volume: volume(answer.volume)?,
        total_bytes: answer.total_bytes,
        available_bytes: answer.available_bytes,
        used_bytes: answer.used_bytes,
        total_files: answer.total_files,
        available_files: answer.available_files,
        used_files: answer.used_files,
        trouble: filled(answer.trouble),
    })
}
