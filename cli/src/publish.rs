//! Publishing: reads what is published and what is declared of it, and streams both to capsuled.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use capsule_proto::capsule::v1::{self, build_request::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::archive::{self, Plan, SMALL, Summary, Tarball};
use crate::args::{BuildArgs, Source};
use crate::base::Base;
use crate::client::Client;
use crate::declaration::{self, Declaration};
use crate::error::Error;
use crate::request;
use crate::text::escape_control;

/// Chunks on their way to capsuled: what one is sent while the next is read. Bounds memory to this many MiB.
const CHUNKS_IN_FLIGHT: usize = 4;

/// A version, ready to be sent.
pub struct Offer {
    header: v1::BuildHeader,
    content: Content,
}

enum Content {
    Tree(Plan),
    Tar(Tarball),
    /// capsuled takes it from containerd.
    Image,
}

impl Content {
    fn stream(self, emit: impl FnMut(Vec<u8>) -> bool) -> Result<Summary, archive::Error> {
        match self {
            Self::Tree(plan) => plan.stream(emit).map(|()| plan.summary()),
            Self::Tar(tarball) => tarball.stream(emit),
            Self::Image => Ok(Summary { files: None, bytes: 0 }),
        }
    }
}

/// Reads and judges what can be judged before anything is sent. Of a tree, what differs from the base is sent.
///
/// # Errors
/// Wrong usage, a wrong `capsule.toml`, a tree or tar that cannot be published.
pub fn prepare(args: &BuildArgs, base: Option<Base>) -> Result<Offer, Error> {
    let Some(source) = args.source.given() else {
        let what = "nothing to publish: name a directory, a tar with --tar, or an image with --image";
        return Err(Error::Usage(what.to_owned()));
    };
    let (file, place) = read_declaration(args.file.as_deref(), source)?;
    let mut header = request::build_header(args, file, &place)?;
    let content = match source {
        Source::Tar(path) => Content::Tar(Tarball::open(path)?),
        Source::Directory(dir) => Content::Tree(plan(dir, args, base.as_ref().map(|base| &base.tree))?),
        Source::Image(_) => Content::Image,
    };
    header.base = base.map(|base| base.version);
    Ok(Offer { header, content })
}

fn plan(dir: &Path, args: &BuildArgs, base: Option<&archive::Base>) -> Result<Plan, Error> {
    let declaration = args.file.as_deref();
    let options =
        archive::Options { keep_owner: args.keep_owner, mtime: args.source_date_epoch, declaration };
    let plan = archive::plan(dir, options, base)?;
    for path in &plan.left_out {
        let note =
            format!("capsulectl: note: left out `{}`: a socket has no place in an image", path.display());
        let _ = writeln!(io::stderr(), "{}", escape_control(&note)); // a note lost is no failure
    }
    Ok(plan)
}

/// What the file declares, and where what it does not declare could be.
fn read_declaration(file: Option<&Path>, source: Source<'_>) -> Result<(Declaration, String), Error> {
    let (path, text) = match (file, source) {
        (Some(path), _) => (path.to_owned(), read_named(path)?),
        (None, Source::Directory(dir)) => {
            (dir.join(archive::DECLARATION), archive::read_declaration(dir)?.unwrap_or_default())
        }
        (None, Source::Tar(_) | Source::Image(_)) => {
            return Ok((Declaration::default(), "a file that --file names".to_owned()));
        }
    };
    let place = format!("`{}`", path.display());
    let declared = declaration::parse(&text).map_err(|mistake| Error::Declaration { path, mistake })?;
    Ok((declared, place))
}

/// A file that the caller names may be a link or a pipe, unlike one that lies in a tree.
fn read_named(path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SMALL + 1).read_to_end(&mut text));
    read.map_err(|source| Error::ReadDeclaration { path: path.to_owned(), source })?;
    if text.len() as u64 > SMALL {
        return Err(archive::Error::TooLarge { path: PathBuf::from(path), limit: SMALL }.into());
    }
    Ok(text)
}

/// Streams the archive while it is made.
///
/// When it cannot be finished the call is dropped, so that capsuled sees it broken off and never a shorter archive
/// that ended well.
///
/// # Errors
/// capsuled's refusal; an archive that cannot be finished.
pub async fn send(client: &Client, offer: Offer) -> Result<(v1::BuildResponse, Summary), Error> {
    let Offer { header, content } = offer;
    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let first = v1::BuildRequest { part: Some(Part::Header(header)) };
    if sender.try_send(first).is_err() {
        return Err(Error::Answer("build")); // cannot happen: the channel is new and has room
    }
    let mut archiver = tokio::task::spawn_blocking(move || {
        let sent = content.stream(|chunk| {
            let part = v1::BuildRequest { part: Some(Part::Tar(chunk)) };
            sender.blocking_send(part).is_ok()
        });
        (sent, sender)
    });
    let mut capsules = client.capsules();
    let call = capsules.build(ReceiverStream::new(receiver));
    tokio::pin!(call);
    tokio::select! {
        biased;
        // The stream has not ended, so this can only be a refusal.
        answer = &mut call => answer.map_err(Error::from).and(Err(Error::Answer("build"))),
        done = &mut archiver => {
            let (sent, sender) = done.map_err(Error::Archiver)?;
            let summary = sent?;
            drop(sender);
            Ok((call.await?.into_inner(), summary))
        }
    }
}
