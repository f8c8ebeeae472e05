//! `commit` and `uppers`: what is written to attachments.

use std::time::SystemTime;

use capsule_proto::capsule::v1;
use serde::Serialize;

use super::Target;
use crate::args::{CommitArgs, UppersCommand};
use crate::error::Error;
use crate::request;
use crate::table::Table;
use crate::text::{Text, age, escape_control, size};
use crate::view::{Time, Version, filled};

/// Result of `commit`.
#[derive(Debug, Serialize)]
pub(super) struct Committed {
    pub(super) version: Version,
    pub(super) existed: bool,
    /// What it is made from.
    pub(super) from_version: String,
}

impl Text for Committed {
    fn text(&self, _: SystemTime) -> String {
        let Self { version: v, existed, from_version } = self;
        let verb = if *existed { "was there already" } else { "published" };
        let line =
            format!("{}@{} {verb}, over {}@{from_version}: {}", v.capsule, v.version, v.capsule, v.digest);
        escape_control(&line) + "\n"
    }
}

/// Result of `uppers`.
#[derive(Debug, Serialize)]
struct Uppers {
    uppers: Vec<Upper>,
}

/// What was written under one name.
#[derive(Debug, Serialize)]
struct Upper {
    name: String,
    /// Empty when what is known of it is damaged.
    capsule: String,
    /// The version that it lay over last.
    version: String,
    digest: String,
    /// Bytes that it can hold; `null` when only the disk bounds it.
    size: Option<u64>,
    created_at: Option<Time>,
    /// The attachment that has it; `null` when none.
    used_by: Option<String>,
}

impl From<v1::Upper> for Upper {
    fn from(u: v1::Upper) -> Self {
        Self {
            name: u.name,
            capsule: u.capsule,
            version: u.version,
            digest: u.digest,
            size: Some(u.size).filter(|size| *size > 0),
            created_at: u.created_at.map(Time),
            used_by: filled(u.used_by),
        }
    }
}

impl Text for Uppers {
    fn text(&self, now: SystemTime) -> String {
        let mut table = Table::new(["NAME", "CAPSULE", "VERSION", "SIZE", "CREATED", "USED BY"]);
        for u in &self.uppers {
            let capsule = if u.capsule.is_empty() { "(damaged)".to_owned() } else { u.capsule.clone() };
            table.row([
                u.name.clone(),
                capsule,
                u.version.clone(),
                u.size.map(size).unwrap_or_default(),
                age(u.created_at, now),
                u.used_by.clone().unwrap_or_default(),
            ]);
        }
        table.to_string()
    }
}

/// Result of `uppers rm`.
#[derive(Debug, Serialize)]
struct Removed {
    removed: Upper,
}

impl Text for Removed {
    fn text(&self, _: SystemTime) -> String {
        let Upper { name, capsule, version, .. } = &self.removed;
        let over =
            if capsule.is_empty() { String::new() } else { format!(", written over {capsule}@{version}") };
        escape_control(&format!("{name} is removed{over}")) + "\n"
    }
}

pub async fn commit(to: Target<'_>, args: CommitArgs, namespace: Option<&str>) -> Result<(), Error> {
    let request = request::commit(args, namespace)?;
    let answer = to.connect().await?.uppers().commit(request).await?.into_inner();
    let v1::CommitResponse { version, existed, from_version } = answer;
    let version = version.ok_or(Error::Answer("commit"))?.into();
    let committed = Committed { version, existed, from_version };
    to.print(&committed, &committed)
}

pub async fn uppers(to: Target<'_>, command: Option<UppersCommand>) -> Result<(), Error> {
    let mut client = to.connect().await?.uppers();
    match command.unwrap_or(UppersCommand::Ls) {
        UppersCommand::Ls => {
            let answer = client.list_uppers(v1::ListUppersRequest {}).await?.into_inner();
            let uppers = Uppers { uppers: answer.uppers.into_iter().map(Upper::from).collect() };
            to.print(&uppers, &uppers)
        }
        UppersCommand::Rm { name } => {
            let answer = client.remove_upper(v1::RemoveUpperRequest { name }).await?.into_inner();
            let removed = Removed { removed: answer.upper.ok_or(Error::Answer("uppers rm"))?.into() };
            to.print(&removed, &removed)
        }
    }
}
