//! File systems of programs (FUSE). A mount helper starts the program, which goes on until its file system is unmounted.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

use thiserror::Error;
use tokio::net::unix::pipe::Receiver;

use super::{Mount, PlanError, RootfsError, aside, place::Place};
use crate::{
    command::{self, CommandError},
    reaper::Reaper,
};

/// What a mount's type begins with, and its helper: those that containerd knows (`core/mount/mount_linux.go`,
/// `allowedHelperBinaries`).
const HELPERS: [(&str, &str); 2] = [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")];
/// How many lines of what a helper says are kept: why it failed is in the last of them.
const LINES: usize = 4;

/// Why a program's file system is not there.
#[derive(Debug, Error)]
pub enum HelperError {
    /// The helper did not run, or not to its end.
    #[error("mount helper {0}: is it installed and in containerd's PATH?")]
    Run(&'static str, #[source] CommandError),
    /// It ran and failed.
    #[error("mount helper {helper} failed for {kind} with status {status}: {said}")]
    Failed {
        /// Its name.
        helper: &'static str,
        /// The program's file system.
        kind: String,
        /// How it ended, 128 and more for a signal.
        status: u32,
        /// What it or the program said, in one line.
        said: String,
    },
    /// A pipe for what it says.
    #[error("cannot make a pipe for a mount helper")]
    Pipe(#[source] io::Error),
}

/// A call of a mount helper.
#[derive(Debug, PartialEq, Eq)]
pub struct Helper {
    program: &'static str,
    kind: String,
    source: String,
    options: Vec<String>,
}

impl Helper {
    /// The helper of a mount, or none: the kernel knows its type. All options are the program's.
    ///
    /// # Errors
    /// [`PlanError::Option`] for one that is for containerd's mount manager.
    pub fn of(mount: &Mount) -> Result<Option<Self>, PlanError> {
        let of = |(prefix, program)| Some((mount.kind.strip_prefix(prefix)?, program));
        let Some((kind, program)) = HELPERS.into_iter().find_map(of) else { return Ok(None) };
        if let Some(option) = mount.options.iter().find(|option| option.starts_with("X-containerd.")) {
            return Err(PlanError::Option(option.clone()));
        }
        let (source, options) = (mount.source.clone(), mount.options.clone());
        Ok(Some(Self { program, kind: kind.to_owned(), source, options }))
    }

    /// As containerd calls it.
    fn command(&self, target: &Path) -> Command {
        let mut command = Command::new(self.program);
        command.arg(&self.source).arg(target);
        for option in &self.options {
            command.args(["-o", option]);
        }
        // systemd's readiness protocol is between systemd and containerd.
        command.args(["-t", &self.kind]).env_remove("NOTIFY_SOCKET");
        command
    }

    /// Mounts the file system. A helper whose caller has left is killed as a command of the OCI runtime is.
    ///
    /// The helper is given a path: what is renamed in the root from now on, by whoever else has its files, can lead it
    /// elsewhere.
    ///
    /// # Errors
    /// [`RootfsError::Place`], [`RootfsError::Helper`]; then something may be mounted.
    pub async fn mount(&self, place: &Place, reaper: &Reaper) -> Result<(), RootfsError> {
        let place = place.clone();
        let spot = aside(move || place.find()).await?;
        let mut command = self.command(&spot.name());
        let (output, writer) = io::pipe().map_err(HelperError::Pipe)?;
        let errors = writer.try_clone().map_err(HelperError::Pipe)?;
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
        let output = Receiver::from_owned_fd(output.into()).map_err(HelperError::Pipe)?;
        let ran = command::run(reaper, command, Some(output), None).await;
        let done = ran.map_err(|e| HelperError::Run(self.program, e))?;
        if done.status == 0 {
            return Ok(());
        }
        let said = last_lines(&String::from_utf8_lossy(&done.stdout));
        let (helper, kind, status) = (self.program, self.kind.clone(), done.status);
        Err(HelperError::Failed { helper, kind, status, said }.into())
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { kind: kind.into(), source: "overlay".into(), options, ..Default::default() }
    }

    #[test]
    fn types_of_programs_are_given_to_their_helper() {
        for (kind, options, command) in [
            (
                "fuse3.fuse-overlayfs",
                &["lowerdir=/a:/b", "ro"][..],
                "mount.fuse3 overlay /t -o lowerdir=/a:/b -o ro -t fuse-overlayfs",
            ),
            ("fuse.x#y", &["loop"], "mount.fuse overlay /t -o loop -t x#y"),
        ] {
            let helper = Helper::of(&mount(kind, options)).unwrap().unwrap();
            assert_eq!(
                format!("{:?}", helper.command(Path::new("/t")))
                    .replace('"', "")
                    .replace("env -u NOTIFY_SOCKET ", ""),
                command
            );
        }
        for kind in ["fuse", "fuseblk", "overlay", "fuse3"] {
            assert_eq!(Helper::of(&mount(kind, &[])), Ok(None));
        }
        let option = "X-containerd.mkdir.path=/x".to_owned();
        assert_eq!(Helper::of(&mount("fuse.x", &[&option])), Err(PlanError::Option(option)));
    }

    #[test]
    fn the_reason_is_in_the_last_lines() {
        assert_eq!(last_lines("a\n\n b \nc\nd\ne\n"), "b; c; d; e");
        assert_eq!(last_lines(""), "");
    }

    #[tokio::test]
    async fn a_helper_that_is_missing_is_named() {
        let mut helper = Helper::of(&mount("fuse3.x", &[])).unwrap().unwrap();
        helper.program = "mount.not-there";
        let error = helper.mount(&Place::new(Path::new("/"), ""), &Reaper::idle()).await.unwrap_err();
        let helper = std::error::Error::source(&error).unwrap();
        assert_eq!(
            helper.to_string(),
            "mount helper mount.not-there: is it installed and in containerd's PATH?"
        );
    }
}
