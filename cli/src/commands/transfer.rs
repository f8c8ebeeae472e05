//! `pull` and `push`, and `import`.

use std::time::SystemTime;

use capsule_proto::capsule::v1::{self, pull_response, push_response};
use serde::Serialize;

use super::Target;
use crate::args::{CapsuleRef, ImportArgs, PullArgs, PushArgs};
use crate::credentials;
use crate::error::Error;
use crate::progress::Progress;
use crate::text::{Text, escape_control};
use crate::view::Version;

/// A version that came from elsewhere.
#[derive(Debug, Serialize)]
pub(super) struct Arrived {
    version: Version,
    /// It was here already.
    existed: bool,
    /// What it was called where it came from.
    reference: String,
}

impl Arrived {
    pub(super) fn new(arrived: Option<v1::Arrived>, call: &'static str) -> Result<Self, Error> {
        let v1::Arrived { version, existed, reference } = arrived.ok_or(Error::Answer(call))?;
        Ok(Self { version: version.ok_or(Error::Answer(call))?.into(), existed, reference })
    }
}

impl Text for Arrived {
    fn text(&self, _: SystemTime) -> String {
        let Version { capsule, version, digest, .. } = &self.version;
        let existed = if self.existed { "already here" } else { "new" };
        escape_control(&format!("{capsule}@{version}  {digest}  ({existed}, from {})", self.reference)) + "\n"
    }
}

/// Result of `push`.
#[derive(Debug, Serialize)]
struct Pushed {
    version: Version,
    /// Where it is.
    reference: String,
}

impl Text for Pushed {
    fn text(&self, _: SystemTime) -> String {
        let Version { capsule, version, digest, .. } = &self.version;
        escape_control(&format!("{capsule}@{version}  {digest}  (pushed to {})", self.reference)) + "\n"
    }
}

pub(super) fn naming(naming: Option<CapsuleRef>) -> Option<v1::As> {
    naming.map(|capsule| v1::As { name: capsule.name, version: capsule.version.unwrap_or_default() })
}

pub async fn pull(to: Target<'_>, args: PullArgs) -> Result<(), Error> {
    let PullArgs { reference, naming: named, login } = args;
    let credentials = credentials::read(login, &reference)?;
    let request = v1::PullRequest { reference, r#as: naming(named), credentials };
    let mut events = to.connect().await?.transfers().pull(request).await?.into_inner();
    let mut progress = Progress::new(to.output);
    let done = loop {
        match events.message().await? {
            None => return Err(Error::Answer("pull")),
            Some(v1::PullResponse { event: Some(pull_response::Event::Done(done)) }) => break done,
            Some(v1::PullResponse { event: Some(pull_response::Event::Progress(told)) }) => {
                progress.show(told)
            }
            Some(v1::PullResponse { event: None }) => {}
        }
    };
    progress.end();
    let arrived = Arrived::new(Some(done), "pull")?;
    to.print(&arrived, &arrived)
}

pub async fn push(to: Target<'_>, args: PushArgs) -> Result<(), Error> {
    let PushArgs { capsule, reference, login } = args;
    let credentials = credentials::read(login, &reference)?;
    let version = capsule.version.unwrap_or_default();
    let request = v1::PushRequest { name: capsule.name, version, reference, credentials };
    let mut events = to.connect().await?.transfers().push(request).await?.into_inner();
    let mut progress = Progress::new(to.output);
    let done = loop {
        match events.message().await? {
            None => return Err(Error::Answer("push")),
            Some(v1::PushResponse { event: Some(push_response::Event::Done(done)) }) => break done,
            Some(v1::PushResponse { event: Some(push_response::Event::Progress(told)) }) => {
                progress.show(told)
            }
            Some(v1::PushResponse { event: None }) => {}
        }
    };
    progress.end();
    let version = done.version.ok_or(Error::Answer("push"))?.into();
    let pushed = Pushed { version, reference: done.reference };
    to.print(&pushed, &pushed)
}

pub async fn import(to: Target<'_>, args: ImportArgs, namespace: Option<&str>) -> Result<(), Error> {
    let ImportArgs { image, naming: named } = args;
    let namespace = namespace.map(str::to_owned).ok_or_else(|| {
        Error::Usage("no namespace is given: say with --namespace NS where the image is".to_owned())
    })?;
    let request = v1::ImportRequest { image, namespace, r#as: naming(named) };
    let answer = to.connect().await?.transfers().import(request).await?.into_inner();
    let arrived = Arrived::new(answer.arrived, "import")?;
    to.print(&arrived, &arrived)
}
