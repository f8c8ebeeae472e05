//! `save` and `load`.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use capsule_proto::capsule::v1;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Target;
use super::transfer::Arrived;
use crate::args::SaveArgs;
use crate::error::Error;
use crate::text::{Text, escape_control, size};

/// Bytes of an archive in one message.
const CHUNK: usize = 1 << 20;
/// Chunks on their way to capsuled.
const IN_FLIGHT: usize = 4;

/// Result of `save` to a file.
#[derive(Debug, Serialize)]
struct Saved {
    file: PathBuf,
    bytes: u64,
}

impl Text for Saved {
    fn text(&self, _: SystemTime) -> String {
        escape_control(&format!("{}  {}", self.file.display(), size(self.bytes))) + "\n"
    }
}

/// Result of `load`.
#[derive(Debug, Serialize)]
struct Loaded {
    arrived: Vec<Arrived>,
}

impl Text for Loaded {
    fn text(&self, now: SystemTime) -> String {
        self.arrived.iter().map(|one| one.text(now)).collect()
    }
}

pub async fn save(to: Target<'_>, args: SaveArgs) -> Result<(), Error> {
    let SaveArgs { capsules, file } = args;
    let versions = capsules
        .into_iter()
        .map(|capsule| v1::Saved { name: capsule.name, version: capsule.version.unwrap_or_default() })
        .collect();
    let to_stdout = file == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Error::Usage(
            "an archive is nothing to look at: write it to a file with -f FILE".to_owned(),
        ));
    }
    let mut archive = to.connect().await?.transfers().save(v1::SaveRequest { versions }).await?.into_inner();
    // A refusal is heard before there is a file.
    let first = archive.message().await?;
    if to_stdout {
        let mut stdout = io::stdout().lock();
        write(&mut stdout, &mut archive, first, Error::Print).await?;
        return stdout.flush().map_err(Error::Print);
    }
    let failed = |source| Error::WriteArchive { path: file.clone(), source };
    let mut part = Part::create(&file).map_err(failed)?;
    let bytes = write(&mut part.out, &mut archive, first, failed).await?;
    part.keep().map_err(failed)?;
    let saved = Saved { bytes, file };
    to.print(&saved, &saved)
}

/// A file that is being written: what breaks off is not under the name that was asked for, and is gone with this.
struct Part<'a> {
    out: File,
    path: PathBuf,
    file: &'a Path,
}

impl<'a> Part<'a> {
    /// A name beside `file` that nobody else writes to, whoever else saves to it at the same time.
    fn create(file: &'a Path) -> io::Result<Self> {
        let mut number = 0_u32;
        loop {
            let mut name = file.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{}-{number}.part", std::process::id()));
            let path = file.with_file_name(name);
            match File::create_new(&path) {
                Ok(out) => return Ok(Self { out, path, file }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => {
                    number += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives it its name. Durable when it returns.
    fn keep(self) -> io::Result<()> {
        self.out.sync_all()?;
        fs::rename(&self.path, self.file)?;
        let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        // One that has its name is not there any more; the first error is the one to tell.
        let _ = fs::remove_file(&self.path);
    }
}

async fn write(
    out: &mut impl Write,
    archive: &mut tonic::Streaming<v1::SaveResponse>,
    first: Option<v1::SaveResponse>,
    failed: impl Fn(io::Error) -> Error,
) -> Result<u64, Error> {
    let (mut bytes, mut next) = (0, first);
    while let Some(v1::SaveResponse { archive: piece }) = next {
        out.write_all(&piece).map_err(&failed)?;
        bytes += piece.len() as u64;
        next = archive.message().await?;
    }
    if bytes == 0 { Err(Error::Answer("save")) } else { Ok(bytes) }
}

/// When the archive cannot be read to its end the call is dropped, so that capsuled sees it broken off.
pub async fn load(to: Target<'_>, file: &Path) -> Result<(), Error> {
    let client = to.connect().await?;
    let mut input = open(file)?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let path = file.to_owned();
    let mut reader = tokio::task::spawn_blocking(move || {
        loop {
            let mut archive = Vec::with_capacity(CHUNK);
            let read = input.by_ref().take(CHUNK as u64).read_to_end(&mut archive);
            match read {
                Ok(0) => return (Ok(()), sender),
                Ok(_) if sender.blocking_send(v1::LoadRequest { archive }).is_ok() => {}
                // The call has ended, and says why.
                Ok(_) => return (Ok(()), sender),
                Err(source) => return (Err(Error::ReadDeclaration { path, source }), sender),
            }
        }
    });
    let mut transfers = client.transfers();
    let call = transfers.load(ReceiverStream::new(receiver));
    tokio::pin!(call);
    let answer = tokio::select! {
        biased;
        // Before the archive's end this can only be a refusal.
        answer = &mut call => answer?,
        done = &mut reader => {
            let (read, sender) = done.map_err(Error::Archiver)?;
            read?;
            drop(sender);
            call.await?
        }
    };
    let arrived: Result<Vec<_>, _> =
        answer.into_inner().arrived.into_iter().map(|one| Arrived::new(Some(one), "load")).collect();
    let loaded = Loaded { arrived: arrived? };
    to.print(&loaded, &loaded)
}

fn open(file: &Path) -> Result<Box<dyn Read + Send>, Error> {
    if file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Error::Usage("no archive is given: name one with -f FILE, or pipe it in".to_owned()));
        }
        return Ok(Box::new(io::stdin()));
    }
    let opened = File::open(file);
    Ok(Box::new(opened.map_err(|source| Error::ReadDeclaration { path: file.to_owned(), source })?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.tar");
        let names = || {
            let all = fs::read_dir(folder.path()).expect("the folder");
            let mut names: Vec<_> = all.map(|entry| entry.expect("an entry").file_name()).collect();
            names.sort();
            names
        };
        let part = |content: &str| {
            let mut part = Part::create(&file).expect("a file");
            part.out.write_all(content.as_bytes()).expect("write");
            part
        };
        // Two at once, one of which breaks off.
        let (one, two, three) = (part("one"), part("two"), part("three"));
        assert_eq!(names().len(), 3);
        one.keep().expect("the first");
        assert_eq!(fs::read_to_string(&file).expect("read"), "one");
        drop(two);
        three.keep().expect("the last");
        assert_eq!(fs::read_to_string(&file).expect("read"), "three");
        assert_eq!(names(), ["a.tar"]);
    }

    #[test]
    fn a_file_that_cannot_be_has_its_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("lost/a.tar");
        assert_eq!(Part::create(&file).map(|_| ()).expect_err("no folder").kind(), io::ErrorKind::NotFound);
        // Where a folder is, no file can be.
        let file = folder.path().join("b");
        fs::create_dir(&file).expect("a folder");
        Part::create(&file).expect("a file").keep().expect_err("it is a folder");
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
    }
}
