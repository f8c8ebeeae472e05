//! `tag` and `untag`.

use std::time::SystemTime;

use capsule_proto::capsule::v1;
use serde::Serialize;

use super::Target;
use crate::args::{TagArgs, TagRef};
use crate::error::Error;
use crate::text::{Text, escape_control};
use crate::view::Version;

/// Result of `tag`.
#[derive(Debug, Serialize)]
struct Tagged {
    version: Version,
    /// What was asked for; `version.tags` has all.
    tags: Vec<String>,
}

impl Text for Tagged {
    fn text(&self, _: SystemTime) -> String {
        let Version { capsule, version, .. } = &self.version;
        let line = |tag: &String| escape_control(&format!("{capsule}@{tag} is {capsule}@{version}")) + "\n";
        self.tags.iter().map(line).collect()
    }
}

/// Result of `untag`.
#[derive(Debug, Serialize)]
struct Untagged {
    capsule: String,
    tag: String,
    /// What it stood for; `null` when that is not on this node.
    version: Option<Version>,
}

impl Text for Untagged {
    fn text(&self, _: SystemTime) -> String {
        let Self { capsule, tag, version } = self;
        let was = version.as_ref().map(|v| format!(", was {capsule}@{}", v.version)).unwrap_or_default();
        escape_control(&format!("{capsule}@{tag} is no tag any more{was}")) + "\n"
    }
}

pub async fn tag(to: Target<'_>, args: TagArgs) -> Result<(), Error> {
    let TagArgs { capsule, tags } = args;
    let version = capsule.version.unwrap_or_default();
    let request = v1::TagRequest { name: capsule.name, version, tags: tags.clone() };
    let answer = to.connect().await?.tags().tag(request).await?.into_inner();
    let tagged = Tagged { version: answer.version.ok_or(Error::Answer("tag"))?.into(), tags };
    to.print(&tagged, &tagged)
}

pub async fn untag(to: Target<'_>, tag: TagRef) -> Result<(), Error> {
    let TagRef { name, tag } = tag;
    let request = v1::UntagRequest { name: name.clone(), tag: tag.clone() };
    let answer = to.connect().await?.tags().untag(request).await?.into_inner();
    let untagged = Untagged { capsule: name, tag, version: answer.version.map(Version::from) };
    to.print(&untagged, &untagged)
}
